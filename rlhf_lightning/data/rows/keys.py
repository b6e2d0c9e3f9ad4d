"""What is done with each key of a row and of a message that training tools know; docs/data.md shows the same tables.

FOLLOWED is read here. REFUSED means something that is not followed: the row is refused with the key and the way out.
PASSED keys change nothing in training: those of rows reach reward functions, those of messages the chat template.
"""

from __future__ import annotations

from typing import NamedTuple

FOLLOWED, REFUSED, PASSED = "followed", "refused", "passed on"


class Use(NamedTuple):
    """What is done with a key, and how it is read or why it is not."""

    what: str
    how: str


def _all(what: str, how: str, *names: str) -> dict[str, Use]:
    return {name: Use(what, how) for name in names}


_TOKENS = "tokens of another tool's tokenizer; write the text instead"
_MEDIA = "only text is learned; leave rows with other media out"
_TREE = "the row is a node of a tree; write each path from the root to an answer as messages"
_LOGPROBS = "log-probabilities are measured with the reference of the run; leave the column out"
_WEIGHT = "rows count alike; leave the column out, or repeat the row"

ROW_KEYS: dict[str, Use] = {
    **_all(FOLLOWED, "text, or a list of messages", "prompt", "completion", "chosen", "rejected"),
    **_all(FOLLOWED, "a conversation", "messages", "conversations", "conversation", "contents"),
    **_all(FOLLOWED, "text that is learned whole", "text"),
    **_all(FOLLOWED, "several answers to one prompt, with ranks or scores", "completions"),
    **_all(FOLLOWED, "of the completions, 1 is best", "ranks"),
    **_all(FOLLOWED, "of the completions, the highest is best", "scores"),
    **_all(FOLLOWED, "whether an answer is good, for KTO", "label", "kto_tag"),
    **_all(FOLLOWED, "by how much the better answer should win", "margin"),
    **_all(FOLLOWED, "accuracy is also reported by its values", "subset"),
    **_all(FOLLOWED, "the turn of the user is instruction and input, output the answer",
           "instruction", "input", "output"),
    **_all(FOLLOWED, "with instruction: earlier turns, pairs of question and answer", "history"),
    **_all(FOLLOWED, "with chosen and rejected: the user's turn", "question"),
    **_all(FOLLOWED, "becomes a system turn", "system", "systemInstruction"),
    **_all(FOLLOWED, "with tools and answers, which are calls: a conversation", "query", "answers"),
    **_all(FOLLOWED, "two answers", "response_0", "response_1", "response_2", "response1", "response2", "response_a",
           "response_b", "response_j", "response_k", "answer_0", "answer_1", "answer1", "answer2", "output_1",
           "output_2", "human_ref_A", "human_ref_B", "conversation_a", "conversation_b"),
    **_all(FOLLOWED, "which of two answers is better", "preference_strength", "overall_preference",
           "better_response_id", "score_0", "score_1", "preference", "winner_model_a", "winner_model_b", "winner",
           "comparison"),
    **_all(FOLLOWED, "answers with a score or rank each", "responses", "generations", "ratings"),
    **_all(FOLLOWED, "a pair of conversations", "chosen_messages", "rejected_messages"),
    **_all(FOLLOWED, "a pair, beside input with messages", "preferred_output", "non_preferred_output"),
    **_all(FOLLOWED, "reaches the chat template", "tools", "documents", "chat_template_kwargs", "enable_thinking"),
    **_all(FOLLOWED, "the older form of tools", "functions"),
    **_all(REFUSED, _MEDIA, "image", "images", "video", "videos", "audio", "audios"),
    **_all(REFUSED, _TOKENS, "input_ids", "token_ids", "attention_mask", "completion_mask", "assistant_masks",
           "position_ids", "seq_lengths", "prompt_input_ids", "chosen_input_ids", "rejected_input_ids",
           "input_ids_chosen", "input_ids_rejected", "attention_mask_chosen", "attention_mask_rejected"),
    **_all(REFUSED, "answers are not judged step by step; write one label, or ranks (beside human_ref_A and human_ref_B"
           " it is followed)", "labels"),
    **_all(REFUSED, "pieces of text with a label each; write prompt and completion, or messages", "segments"),
    **_all(REFUSED, _TREE, "parent_id", "replies", "mapping", "message_tree_id"),
    **_all(REFUSED, "the row is one message; write each conversation as messages", "role"),
    **_all(REFUSED, _LOGPROBS, "ref_chosen_logps", "ref_rejected_logps", "reference_chosen_logps",
           "reference_rejected_logps"),
    **_all(REFUSED, _WEIGHT, "weight", "sample_weight", "loss_weight"),
    **_all(REFUSED, "it is no part of what the chat template writes; say it in the system turn", "response_format",
           "tool_choice", "function_call", "parallel_tool_calls"),
    **_all(REFUSED, "the template is that of the tokenizer", "chat_template"),
    **_all(REFUSED, "agents that a row names are not run; rename the column", "agent_name"),
    **_all(PASSED, "for reward functions", "data_source", "ability", "reward_model", "extra_info", "index", "answer",
           "solution", "reference", "ground_truth", "reference_answer", "id", "prompt_id", "source", "dataset",
           "datasource", "category", "metadata", "score_chosen", "score_rejected", "chosen_score", "rejected_score",
           "chosen_rating", "rejected_rating", "chosen_model", "rejected_model", "judgements", "annotators"),
}  # fmt: skip

_PART = "what is learned from is decided by whole turns: `weight` or `train`"

MESSAGE_KEYS: dict[str, Use] = {
    **_all(FOLLOWED, "who speaks; human is read as user, gpt as assistant, ... (data.roles adds more)", "role", "from"),
    **_all(FOLLOWED, "text, or a list of text parts; may be empty beside tool_calls", "content", "value",
           "parts"),
    **_all(FOLLOWED, "1 or true is learned, 0 or false is given", "weight", "train", "training"),
    **_all(FOLLOWED, "reaches the chat template, arguments as an object", "tool_calls"),
    **_all(FOLLOWED, "the older form of tool_calls", "function_call"),
    **_all(REFUSED, _PART, "train_detail", "training_detail", "mask", "loss", "loss_mask", "loss_weight"),
    **_all(REFUSED, _MEDIA, "image", "images", "video", "videos", "audio", "audios"),
    **_all(REFUSED, "a refusal is learned as content; write it there", "refusal"),
    **_all(REFUSED, "an answer is learned from its beginning; leave the key out", "prefix"),
    **_all(REFUSED, "channels and recipients are no part of messages; write content or tool_calls", "channel",
           "recipient", "end_turn"),
    **_all(REFUSED, "caching is for a served model; leave the key out", "cache_control"),
    **_all(REFUSED, _TREE, "parent_id", "replies", "children"),
    **_all(REFUSED, _TOKENS, "token_ids", "input_ids", "logprobs"),
    **_all(PASSED, "for the chat template", "name", "tool_call_id", "reasoning_content", "reasoning", "thinking", "id",
           "timestamp", "annotations"),
}  # fmt: skip

MORE = frozenset(
    ("context", "context_messages", "passage", "article", "history", "system_prompt", "developer", "post", "document",
     "choices", "options")
)  # fmt: skip
"""Columns, in any case, of what stands before or behind a question; without it a prompt is another one."""

PROMPT_LIKE = MORE | {
    "prompt", "question", "query", "instruction", "input", "inputs", "problem", "task", "user", "user_prompt"
}  # fmt: skip
"""Columns, in any case, whose text a model would need to be shown; they are never left out without a word."""

SIMILAR = {  # columns of other tools, for the advice where a row is of no known type
    "prompt": ("question", "query", "problem", "instruction", "inputs", "input", "input_text", "user",
               "user_prompt", "task"),
    "completion": ("response", "answer", "output", "output_text", "reply", "target", "generation", "assistant",
                   "solution", "summary"),
    "chosen": ("chosen_response", "preferred", "accepted", "winner_response", "response_chosen", "good", "pos"),
    "rejected": ("rejected_response", "dispreferred", "non_preferred", "response_rejected", "bad", "neg"),
    "completions": ("responses", "answers", "candidates", "generations"),
    "messages": ("dialog", "dialogue", "turns", "chat", "conversation_history"),
}  # fmt: skip
EXPORTS = (  # of tools that ask people or models: columns they have, and what they are
    (("custom_id", "body"), "a request of OpenAI's batches; write body.messages as messages"),
    (("custom_id", "response"), "an answer of OpenAI's batches; write the messages of its request and this one"),
    (("item", "sample"), "a result of OpenAI's evals; write the messages that were asked, and the answer"),
    (
        ("annotations", "data"),
        "an export of Label Studio; export it as CSV or JSON_MIN, and say by data.columns what is what",
    ),
    (("fields", "responses"), "a record of Argilla; write prompt, completions and their ranks"),
    (("response-1",), "an export of Argilla; write prompt, completions and their ranks"),
)
