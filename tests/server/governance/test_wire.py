"""The protocol: what is generated fits what is written, and versions that do not go together say so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from google.protobuf.descriptor import FieldDescriptor

from polyclinic.core import governance
from polyclinic.core.errors import TrustError
from polyclinic.core.governance import governance_pb2 as pb
from polyclinic.core.governance.wire import demand_compatible, enrol_request, from_wire, proof_message, to_wire
from polyclinic.core.signing import SigningKey, check, sign

PROTO = (Path(governance.__file__).parent / "governance.proto").read_text()
TYPES = {
    FieldDescriptor.TYPE_BYTES: "bytes",
    FieldDescriptor.TYPE_STRING: "string",
    FieldDescriptor.TYPE_DOUBLE: "double",
    FieldDescriptor.TYPE_BOOL: "bool",
    FieldDescriptor.TYPE_UINT32: "uint32",
    FieldDescriptor.TYPE_UINT64: "uint64",
}


def test_generated_messages_are_those_of_the_proto_file() -> None:
    text = re.sub(r"//.*", "", PROTO)
    written = {}
    for name, body in re.findall(r"message (\w+) \{(.*?)\}", text, re.DOTALL):
        fields = re.findall(r"(repeated )?(\w+) (\w+) = (\d+);", body)
        written[name] = [(bool(many), kind, field, int(number)) for many, kind, field, number in fields]
    generated = {
        name: [
            (f.is_repeated, f.message_type.name if f.message_type else TYPES[f.type], f.name, f.number)
            for f in message.fields
        ]
        for name, message in pb.DESCRIPTOR.message_types_by_name.items()
    }
    assert generated == written


def test_generated_calls_are_those_of_the_proto_file() -> None:
    written = re.findall(r"rpc (\w+)\((\w+)\) returns \((stream )?(\w+)\);", PROTO)
    service = pb.DESCRIPTOR.services_by_name["Governance"]
    generated = [
        (m.name, m.input_type.name, "stream " if m.server_streaming else "", m.output_type.name)
        for m in service.methods
    ]
    assert generated == written
    assert service.full_name == "polyclinic.governance.v1.Governance"


def test_statements_travel_unchanged() -> None:
    signed = sign({"kind": "head", "a": "é"}, SigningKey.new())
    assert from_wire(pb.Signed.FromString(to_wire(signed).SerializeToString())) == signed


def test_a_request_carries_its_proof() -> None:
    key = SigningKey.new()
    asked = pb.EnrolRequest.FromString(enrol_request("t" * 43, "north", b"csr", b"node", key, "0.1.0"))
    check(asked.signing_key, proof_message("t" * 43, "north", b"csr"), asked.proof)
    assert (asked.site, asked.csr, asked.node_key, asked.version) == ("north", b"csr", b"node", "0.1.0")


@pytest.mark.parametrize(("theirs", "ours"), [("0.1.0", "0.1.9"), ("0.1.0.dev1", "0.1.0"), ("1.2", "1.2.3")])
def test_versions_that_go_together(theirs: str, ours: str) -> None:
    demand_compatible(theirs, ours)


@pytest.mark.parametrize(
    "theirs", ["0.2.0", "1.1.0", "", "0", "0.10.0", "0.1.0 or so", "v0.1.0", "0.1.", "0.1.0" + "0" * 50]
)
def test_versions_that_do_not(theirs: str) -> None:
    with pytest.raises(TrustError, match=r"version 0\.1\.0 at the coordinator do not go together"):
        demand_compatible(theirs, "0.1.0")
