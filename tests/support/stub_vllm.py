"""A program in the place of vLLM, of the standard library only: it says one token to everybody and takes any weights.

The environment variable STUB_VLLM tells it to ``die`` while it starts, or to ``sleep``. It starts a child, as vLLM
does, and writes both process ids, its words and its environment beside the model.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from tests.support.http_answers import http_server


def answering(version="default"):
    """What answers each request, with the version of the weights that it was given last."""

    def answer(path, body, headers):
        nonlocal version
        said = {"data": [], "weight_version": version}
        if path == "/finish_weight_update":
            version = body["weight_version"]
        if path == "/v1/completions":
            choice = {"token_ids": [1], "prompt_token_ids": body["prompt"], "finish_reason": "stop", "stop_reason": 1}
            said = {"id": body["request_id"], "choices": [{**choice, "logprobs": {"token_logprobs": [-0.5]}}]}
        return 200, {}, said

    return answer


def main():
    print("the server begins")
    print("and says \x1b[2J something", flush=True)
    how = os.environ.get("STUB_VLLM")
    child = subprocess.Popen(["sleep", "100"])
    record = {"words": sys.argv[1:], "environment": dict(os.environ), "pids": [os.getpid(), child.pid]}
    folder = Path(sys.argv[sys.argv.index("serve") + 1])
    (folder / "started.tmp").write_text(json.dumps(record))
    (folder / "started.tmp").rename(folder / "started.json")
    if how == "die":
        sys.exit(3)
    if how == "sleep":
        time.sleep(100)
    http_server(answering(), int(sys.argv[sys.argv.index("--port") + 1])).serve_forever()


if __name__ == "__main__":
    main()
