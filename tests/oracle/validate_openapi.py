"""Judges an OpenAPI document by the specification itself.

    validate_openapi.py --file=FILE    the last line is a JSON summary
"""

import argparse
import json
from pathlib import Path

from openapi_spec_validator import OpenAPIV31SpecValidator, validate


def main() -> None:
    """Ends with the first thing that is wrong, if any is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--file", type=Path, required=True)
    document = json.loads(parser.parse_args().file.read_text())
    validate(document, cls=OpenAPIV31SpecValidator)
    print(json.dumps({"openapi": document["openapi"], "paths": len(document["paths"])}))


if __name__ == "__main__":
    main()
