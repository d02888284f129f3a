"""Asks a served demo chat model what train.py examines it in, and prints how often it is right to the letter.

    python evaluate.py http://127.0.0.1:8000/v1     # needs nothing but Python
"""

import argparse
import json
import urllib.request

import data


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("url", help="base URL of an OpenAI-compatible server")
    parser.add_argument("--model", default="muster-demo-chat")
    parser.add_argument("--api-key", default="unused")
    args = parser.parse_args()
    for skill, conversations in data.examination(data.SMALL).items():
        if skill == "tools":
            continue  # a server may return calls as such, not as the text that is compared here
        right = 0
        for conversation in conversations:
            *prompt, answer = conversation["messages"]
            right += complete(args, prompt) == answer["content"]
        print(f"{skill:12s} {right / len(conversations):.2f}", flush=True)


def complete(args: argparse.Namespace, messages: list[data.Message]) -> str:
    body = {"model": args.model, "messages": messages, "temperature": 0, "max_tokens": 200}
    request = urllib.request.Request(
        f"{args.url.rstrip('/')}/chat/completions",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json", "Authorization": f"Bearer {args.api_key}"},
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)["choices"][0]["message"]["content"]


if __name__ == "__main__":
    main()
