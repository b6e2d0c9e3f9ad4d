"""A row of each of many public sets and exports, shortened: the text a stage learns from it, or why it does not.

«» is around what is learned, as in tests/data/test_shapes.py.
"""


def turn(role, content, **more):
    return {"role": role, "content": content, **more}


def say(sender, value):
    return {"from": sender, "value": value}


Q, A, B = turn("user", "Q"), turn("assistant", "A"), turn("assistant", "B")
PAIR = ["<user>Q</s><assistant>«A</s>»", "<user>Q</s><assistant>«B</s>»"]
ONE = PAIR[:1]
SYSTEM = ["<system>S</s><user>Q</s><assistant>«A</s>»"]
ASKED = ["<user>Q</s><assistant>"]
sft, pairs, kto, ppo = "demonstrations", "comparisons", "feedback", "prompts"
SHP = {"history": "Q", "human_ref_A": "B", "human_ref_B": "A", "labels": 0, "score_A": 1, "score_B": 7}
WEBGPT = {"question": {"id": "1", "full_text": "Q"}, "answer_0": "A", "answer_1": "B", "score_0": 0.5, "score_1": -0.5}
ULTRA = {"instruction": "Q", "completions": [{"response": "B", "overall_score": 2.5, "critique": "c"},
                                             {"response": "A", "overall_score": 8.5, "critique": "d"}]}  # fmt: skip
NECTAR = {
    "prompt": "\n\nHuman: Q\n\nAssistant: ",
    "answers": [{"answer": "B", "rank": 2.0}, {"answer": "A", "rank": 1.0}],
}
XLAM = {
    "query": "Q",
    "answers": '[{"name": "add", "arguments": {"x": 1}}]',
    "tools": '[{"name": "add", "parameters": {}}]',
}
GEMINI = {"systemInstruction": {"role": "system", "parts": [{"text": "S"}]},
          "contents": [{"role": "user", "parts": [{"text": "Q"}]},
                       {"role": "model", "parts": [{"text": "A"}]}]}  # fmt: skip
ARENA = {"conversation_a": [Q, A], "conversation_b": [Q, B], "winner": "model_a", "judge": "j"}

TAKEN_SETS = [
    # two answers and which is better
    (pairs, {"prompt": "Q", "response_1": "A", "response_2": "B", "preference_strength": -2}, PAIR),  # HelpSteer 2
    (pairs, {"context": [Q], "response1": "B", "response2": "A", "overall_preference": 3}, PAIR),  # HelpSteer 3
    (pairs, {"prompt": "Q", "response_0": "B", "response_1": "A", "better_response_id": 1}, PAIR),  # PKU-SafeRLHF
    (pairs, SHP, PAIR),
    (pairs, SHP | {"human_ref_A": "A", "human_ref_B": "B", "labels": 1}, PAIR),
    (ppo, SHP, ASKED),
    (pairs, WEBGPT, PAIR),
    (ppo, WEBGPT, ASKED),
    (pairs, {"instruction": "Q", "input": "", "output_1": "B", "output_2": "A", "preference": 2}, PAIR),  # AlpacaFarm
    (pairs, {"question": "Q", "response_j": "A", "response_k": "B"}, PAIR),  # StackExchange
    (pairs, ARENA, PAIR),
    (pairs, ARENA | {"winner": "model_b"}, PAIR[::-1]),
    (pairs, {"prompt": '["Q"]', "response_a": '["B"]', "response_b": '["A"]', "winner_model_a": 0, "winner_model_b": 1},
     PAIR),
    (pairs, {"prompt": "Q", "answer1": "A", "answer2": "B", "comparison": "left"}, PAIR),  # Label Studio
    # answers with a number each
    (pairs, ULTRA, PAIR),
    (kto, ULTRA, [f"{PAIR[1]} False", f"{PAIR[0]} True"]),
    (ppo, ULTRA, ASKED),
    (pairs, NECTAR, ["\n\nHuman: Q\n\nAssistant: «A</s>»", "\n\nHuman: Q\n\nAssistant: «B</s>»"]),
    (pairs, {"question": "Q", "answers": [{"text": "A", "pm_score": 3}, {"text": "B", "pm_score": 1}]}, PAIR),
    (pairs, {"prompt": [Q], "responses": [{"response": "A", "score": 3}, {"response": "B", "score": 1}]}, PAIR),
    (pairs, {"instruction": "Q", "generations": ["B", "A"], "ratings": [1, 5]}, PAIR),  # distilabel
    (pairs, {"prompt": "Q", "chosen": ["A"], "rejected": ["B"], "models": ["m"], "subset": "x"}, PAIR),  # RewardBench 2
    # pairs
    (pairs, {"prompt": "Q", "chosen": [Q, A], "chosen-rating": 5.0, "rejected": [Q, B], "rejected-rating": 1.0}, PAIR),
    (pairs, {"system": "S", "input": "Q", "chosen": "A", "rejected": "B", "rating": [9.0, 3.0]},
     [f"<system>S</s>{text}" for text in PAIR]),
    (pairs, {"instruction": "Q", "chosen": [Q, A], "rejected": [Q, B], "rewards_chosen": 1.0}, PAIR),  # Magpie
    (pairs, {"prompt": [Q], "chosen": "A", "rejected": "B"}, PAIR),
    (kto, {"instruction": "Q", "completion": "A", "label": True}, [f"{ONE[0]} True"]),
    # conversations
    (sft, {"instruction": "Q", "context": "C", "response": "A"}, ["<user>Q\nC</s><assistant>«A</s>»"]),  # Dolly
    (ppo, {"instruction": "Q", "context": "C", "response": "A"}, ["<user>Q\nC</s><assistant>"]),
    (sft, {"conversations": ["Q", "A"], "source": "s"}, ONE),  # LIMA
    (sft, {"conversation": [{"input": "Q", "output": "A"}]}, ONE),  # Capybara
    (sft, {"instruction": "Q", "response": "A", "conversations": [say("human", "Q"), say("gpt", "A")]}, ONE),  # Magpie
    (sft, {"conversations": [say("system", "S"), say("human", "Q") | {"weight": 0.0},
                             say("gpt", "A") | {"weight": 1.0}]}, SYSTEM),  # SlimOrca
    (sft, XLAM, ["[add]<user>Q</s><assistant>«@add.x=1</s>»"]),
    (sft, GEMINI, SYSTEM),
    (sft, {"system": [{"text": "S"}], "messages": [turn("user", [{"text": "Q"}]), turn("assistant", [{"text": "A"}])]},
     SYSTEM),  # Bedrock, Anthropic
    (sft, {"messages": [turn("System", "S"), turn("User", "Q"), turn("Chatbot", "A")]}, SYSTEM),  # Cohere
    (sft, {"prompt": [Q], "completion": "A"}, ONE),
    (sft, {"prompt": "Q", "completion": [A]}, ONE),
    (sft, {"messages": [turn("user", [{"type": "input_text", "text": "Q"}]),
                        turn("assistant", [{"type": "output_text", "text": "A", "annotations": []}])]}, ONE),
]  # fmt: skip

REFUSED_SETS = [
    (pairs, {"prompt": "Q", "response_0": "A", "response_1": "B", "better_response_id": -1},
     "better_response_id: is '-1', which does not say which of response_0 and response_1 is better"),
    (pairs, ARENA | {"winner": "nobody"}, "winner: is 'nobody', which does not say"),
    (pairs, ARENA | {"conversation_b": [turn("user", "q"), B]}, "do not begin with the same message"),
    (pairs, {"prompt": '["Q", "Q"]', "response_a": '["A"]', "response_b": '["B"]', "winner_model_a": 1,
             "winner_model_b": 0}, "prompt: holds 2 turns and an answer 1"),
    (pairs, {"instruction": "Q", "completions": [{"response": "A", "score": 1, "custom_system_prompt": "S"},
                                                 {"response": "B", "score": 2}]},
     r"completions\[0\].custom_system_prompt: the answers of a row share one prompt"),
    (pairs, {"prompt": "Q", "answers": [{"text": "A", "score": 1}, {"text": "B", "score": None}]},
     r"answers\[1\]: has no score, or no text"),
    (sft, {"instruction": "Q", "output": ["A", "B"]}, "output: is a list; write one answer, or several as completions"),
    (sft, {"text": "Q", "role": "prompter", "parent_id": None}, "role: the row is one message"),  # OASST
    (sft, {"message_tree_id": "t", "prompt": {"text": "Q", "replies": []}}, "message_tree_id: the row is a node"),
    (ppo, {"prompt": "Q", "context": "C"}, "context: looks like a part of the prompt"),
    (sft, {"question": "Q", "response": "A", "system_prompt": "S"},
     "set data.columns={prompt: question, completion: response, system: system_prompt}"),  # OpenOrca
    (sft, {"system": "S", "chat": "USER: Q ASSISTANT: A"}, "columns chat, system are no known row type"),  # Glaive
    (sft, {"custom_id": "1", "body": {"messages": [Q]}}, "looks like a request of OpenAI's batches; write body"),
    (sft, {"custom_id": "1", "response": {"body": {}}}, "looks like an answer of OpenAI's batches"),
    (pairs, {"id": 1, "annotations": [], "data": {"prompt": "Q"}}, "looks like an export of Label Studio"),
    (pairs, {"id": "1", "fields": {}, "responses": {}}, "looks like a record of Argilla"),
    (sft, {"messages": [Q, turn("assistant", [{"type": "tool_use", "name": "f", "input": {}}])]},
     r"messages\[1\].content\[0\]: a part of type tool_use; .*write it as tool_calls of the message"),
    (sft, {"prompt": "Q", "completion": "A", "picture": {"bytes": "x", "path": None}}, "picture: is an image or sound"),
    (pairs, {"input_ids_chosen": [1], "input_ids_rejected": [2]}, "input_ids_chosen: tokens of another tool"),
]  # fmt: skip
