"""Holds configurations against the JSON Schema that `cdal config schema` prints.

check_schema.py SCHEMA FILE...: every FILE must be valid. Then each is spoilt in several ways, and must no longer be.
"""

import copy
import json
import sys
import tomllib

import jsonschema

SPOILT = [
    ("model", "votes", "five"),
    ("model", "seeds", 1),
    ("ingest", "dicom", {"completion": {"idle": "5"}}),
    ("daemon", "log", "loud"),
    ("runtime", "provider", "abacus"),
    ("spool", "directory", None),
]


def main(schema_file, *files):
    with open(schema_file) as file:
        schema = json.load(file)
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for name in files:
        with open(name, "rb") as file:
            configuration = tomllib.load(file)
        faults = [f"{name}: {e.json_path}: {e.message}" for e in validator.iter_errors(configuration)]
        assert not faults, faults
        for section, key, value in SPOILT:
            spoilt = copy.deepcopy(configuration)
            spoilt.setdefault(section, {})[key] = value
            assert not validator.is_valid(spoilt), (name, section, key, value)


main(*sys.argv[1:])
