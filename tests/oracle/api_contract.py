"""Has Schemathesis send a daemon what its OpenAPI document permits, and what it does not, and compare the answers with it.

    api_contract.py --url=URL --rule=ID [--token=TOKEN] --object=s3://bucket/key…    the last line is a JSON summary

It works on a copy of the document that knows the world: which rule and which objects are there. All checks that
apply are on, the draws are the same at each run, and what Schemathesis finds ends this with its report.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

# Of each operation in the phase that draws at random; the others are complete by themselves.
EXAMPLES_MAX = 25

# OpenAPI cannot say that one of several parameters has to be there.
CONFIG = """
[[operations]]
include-name = "POST /api/v1/failures/retry"
checks.positive_data_acceptance.expected-statuses = ["2xx", 400, 401, 403]
"""


def main() -> None:
    """Ends with an error if there is any finding."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("url", "rule"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--object", required=True, action="append")
    parser.add_argument("--token")
    args = parser.parse_args()
    document = fetch(f"{args.url}/api/v1/openapi.json")
    for parameter in parameters(document):
        narrow(parameter, args.rule, args.object)
    with tempfile.TemporaryDirectory() as folder:
        output = check(Path(folder), document, args.url, args.token)
    cases = re.search(r"(\d+) generated", output)
    print(json.dumps({"operations": len(list(operations(document))), "cases": int(cases[1]) if cases else 0}))


def fetch(url: str) -> dict:
    """The document that the daemon serves."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=60) as answer:
        return json.load(answer)


def operations(document: dict) -> list[dict]:
    """Every operation of every path."""
    return [operation for path in document["paths"].values() for operation in path.values()]


def parameters(document: dict) -> list[dict]:
    """Every parameter of every operation."""
    return [parameter for operation in operations(document) for parameter in operation.get("parameters", [])]


def narrow(parameter: dict, rule: str, objects: list[str]) -> None:
    """Says what is there in this world: all rules, and some objects."""
    match parameter["name"]:
        case "id" | "rule":
            parameter["schema"]["enum"] = [rule]
        case "uri" | "key":
            parameter["examples"] = {uri: {"value": uri} for uri in objects}


def check(folder: Path, document: dict, url: str, token: str | None) -> str:
    """Runs Schemathesis; its report."""
    (folder / "openapi.json").write_text(json.dumps(document))
    (folder / "schemathesis.toml").write_text(CONFIG)
    command = [
        *(Path(sys.executable).with_name("schemathesis"), "--config-file", "schemathesis.toml", "run", "openapi.json"),
        *("--url", url, "--checks", "all", "--phases", "examples,coverage,fuzzing"),
        *("--max-examples", str(EXAMPLES_MAX), "--seed", "1", "--generation-deterministic"),
        *("--workers", "1", "--continue-on-failure", "--no-color"),
        # Without a token none can be missing: then a change gets 403, where the check wants 401.
        *(("--header", f"Authorization: Bearer {token}") if token else ("--exclude-checks", "missing_required_header")),
    ]
    ended = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if ended.returncode != 0:
        raise SystemExit(ended.stdout)
    return ended.stdout


if __name__ == "__main__":
    main()
