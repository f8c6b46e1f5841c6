"""What schemathesis has to be told of the API: how bytes are sent, and what to aim at.

With FUZZ_AT=VM every request that names a VM is about this one, and every request that names a group about the
group FUZZ_GROUP, so that the odd values reach a guest and a policy and not only the look-up of a name.
"""

import os

import schemathesis

VM, GROUP = os.environ.get("FUZZ_AT"), os.environ.get("FUZZ_GROUP")
# Is never removed nor paused.
KEEP = os.environ.get("FUZZ_KEEP")
ENDS_IT = [("DELETE", "/v1/vms/{name}"), ("POST", "/v1/vms/{name}/pause")]


@schemathesis.serializer("application/x-tar", "application/octet-stream")
def as_bytes(_, value):
    if isinstance(value, bytes):
        return value
    return (value if isinstance(value, str) else repr(value)).encode("utf-8", "surrogateescape")


@schemathesis.hook
def before_call(_, case, kwargs):
    # These answers have no end.
    if case.query.get("follow") in (True, "true"):
        case.query["follow"] = "false"
    if case.path.endswith("/files/watch") and "path" in case.query:
        case.query["path"] = f"/no/such/{case.query['path']}"
    # It learns names from answers. The one VM there is has to stay: without it there is room to make others.
    # Nor may it stand still: nothing could be asked of it, and little would be tested.
    if (case.method, case.path) in ENDS_IT and case.path_parameters.get("name") == KEEP:
        case.path_parameters["name"] = "nobody"
    if VM and "name" in case.path_parameters:
        case.path_parameters["name"] = GROUP if case.path.startswith("/v1/groups") else VM
