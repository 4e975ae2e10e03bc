"""Whether a description is OpenAPI, its examples fit their schemas, and each operation says what it is."""

import json
import sys

import jsonschema
from openapi_spec_validator import validate


def examples(schema):
    return [schema["example"]] if "example" in schema else schema.get("examples", [])


document = json.load(open(sys.argv[1]))
validate(document)
schemas = document["components"]["schemas"]
met = 0
for name, schema in schemas.items():
    whole = {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
    validator = jsonschema.Draft202012Validator(whole)
    for example in examples(schema):
        validator.validate(example)
        met += 1
assert met > 3, "no examples"
assert document["servers"], "no servers"
for path, item in document["paths"].items():
    for method, operation in item.items():
        assert operation.get("summary") and operation.get("description"), f"{method} {path} is not described"
for kind in ("started", "delta", "retrying", "done", "failed", "cancelled", "requeued"):
    for of in ("Event", "EventBlock"):
        told = schemas[of]["discriminator"]["mapping"][kind].rsplit("/", 1)[1]
        data = schemas[told]["properties"]["data"]
        payload = data.get("$ref") or data["contentSchema"]["$ref"]
        assert schemas[payload.rsplit("/", 1)[1]]["properties"], f"{of} {kind} has no data"
