"""A judge: did the model return the JSON that was asked for?  See docs/how-to/judge.md."""

import json

from routeledger.judging import Verdict


def is_json(judgement):
    """1 for a JSON object with all the keys of the schema, less for each that is missing."""
    wanted = (judgement.metadata or {}).get("keys")
    if not wanted:
        return Verdict(None, "no_schema")  # cannot say: that is not a zero
    text = judgement.response["choices"][0]["message"]["content"]
    try:
        found = json.loads(text)
    except ValueError as exc:
        return Verdict(0.0, "not_json", str(exc))
    present = [key for key in wanted if key in found]
    missing = sorted(set(wanted) - set(present))
    return Verdict(
        len(present) / len(wanted),
        "partly" if missing else "right",
        f"missing: {', '.join(missing)}" if missing else None,
    )


is_json.version = "1"
