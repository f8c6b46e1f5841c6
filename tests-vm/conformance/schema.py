"""JSON against the schemas of the OpenAPI document: the keywords which that document uses, and no others.

A keyword that is not known here is an error and not passed over, so that nothing goes unchecked.
"""

import ipaddress
import re

ANNOTATIONS = {"description", "default", "format", "title", "examples", "$schema"}
TYPES = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "null": type(None),
}


class Mismatch(Exception):
    """Where in the value, and what is wrong there."""


class Schemas:
    """The document's schemas."""

    def __init__(self, document):
        self.document = document

    def resolve(self, node):
        while "$ref" in node:
            target = self.document
            for part in node["$ref"].removeprefix("#/").split("/"):
                target = target[part.replace("~1", "/").replace("~0", "~")]
            node = target
        return node

    def check(self, schema, value, at="$"):
        """Raises Mismatch unless `value` is what `schema` describes."""
        if schema is True:
            return
        # In 2020-12 a reference may have neighbours, which hold too.
        for keyword, wanted in schema.items():
            if keyword == "$ref":
                self.check(self.resolve(schema), value, at)
            elif keyword not in ANNOTATIONS and not keyword.startswith("x-"):
                rule = getattr(self, "rule_" + keyword, None)
                if rule is None:
                    raise Mismatch(f"{at}: the schema has the keyword {keyword}, which is not known here")
                rule(wanted, value, at, schema)
        if schema.get("format") == "ipv4" and isinstance(value, str):
            ipaddress.IPv4Address(value)

    def rule_type(self, wanted, value, at, _):
        def is_a(name):
            if name in ("integer", "number"):
                return isinstance(value, (int, float) if name == "number" else int) and not isinstance(value, bool)
            return isinstance(value, TYPES[name])

        names = wanted if isinstance(wanted, list) else [wanted]
        if not any(is_a(name) for name in names):
            raise Mismatch(f"{at}: {value!r} is no {' or '.join(names)}")

    def rule_properties(self, wanted, value, at, _):
        if isinstance(value, dict):
            for name, schema in wanted.items():
                if name in value:
                    self.check(schema, value[name], f"{at}.{name}")

    def rule_required(self, wanted, value, at, _):
        missing = [name for name in wanted if isinstance(value, dict) and name not in value]
        if missing:
            raise Mismatch(f"{at}: lacks {missing}")

    def rule_additionalProperties(self, wanted, value, at, schema):
        if not isinstance(value, dict):
            return
        for name in value.keys() - schema.get("properties", {}).keys():
            if wanted is False:
                raise Mismatch(f"{at}: has {name}, which the schema does not know")
            self.check(wanted, value[name], f"{at}.{name}")

    def rule_items(self, wanted, value, at, schema):
        if isinstance(value, list):
            for index, item in enumerate(value[len(schema.get("prefixItems", [])):]):
                self.check(wanted, item, f"{at}[{index}]")

    def rule_prefixItems(self, wanted, value, at, _):
        if isinstance(value, list):
            for index, (schema, item) in enumerate(zip(wanted, value)):
                self.check(schema, item, f"{at}[{index}]")

    def rule_const(self, wanted, value, at, _):
        if value != wanted:
            raise Mismatch(f"{at}: {value!r} is not {wanted!r}")

    def rule_enum(self, wanted, value, at, _):
        if value not in wanted:
            raise Mismatch(f"{at}: {value!r} is none of {wanted}")

    def matches(self, schemas, value, at):
        found, reasons = 0, []
        for schema in schemas:
            try:
                self.check(schema, value, at)
                found += 1
            except Mismatch as mismatch:
                reasons.append(str(mismatch))
        return found, reasons

    def rule_oneOf(self, wanted, value, at, _):
        found, reasons = self.matches(wanted, value, at)
        if found != 1:
            raise Mismatch(f"{at}: {value!r} matches {found} of {len(wanted)}: {reasons}")

    def rule_anyOf(self, wanted, value, at, _):
        found, reasons = self.matches(wanted, value, at)
        if found == 0:
            raise Mismatch(f"{at}: {value!r} matches none: {reasons}")

    def rule_allOf(self, wanted, value, at, _):
        for schema in wanted:
            self.check(schema, value, at)

    def rule_minimum(self, wanted, value, at, _):
        if isinstance(value, (int, float)) and value < wanted:
            raise Mismatch(f"{at}: {value} is below {wanted}")

    def rule_maximum(self, wanted, value, at, _):
        if isinstance(value, (int, float)) and value > wanted:
            raise Mismatch(f"{at}: {value} is above {wanted}")

    def rule_minItems(self, wanted, value, at, _):
        if isinstance(value, list) and len(value) < wanted:
            raise Mismatch(f"{at}: has fewer than {wanted} items")

    def rule_maxItems(self, wanted, value, at, _):
        if isinstance(value, list) and len(value) > wanted:
            raise Mismatch(f"{at}: has more than {wanted} items")

    def rule_minLength(self, wanted, value, at, _):
        if isinstance(value, str) and len(value) < wanted:
            raise Mismatch(f"{at}: is shorter than {wanted}")

    def rule_maxLength(self, wanted, value, at, _):
        if isinstance(value, str) and len(value) > wanted:
            raise Mismatch(f"{at}: is longer than {wanted}")

    def rule_pattern(self, wanted, value, at, _):
        if isinstance(value, str) and not re.search(wanted, value):
            raise Mismatch(f"{at}: {value!r} is not {wanted}")
