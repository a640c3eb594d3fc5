from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Signed(_message.Message):
    __slots__ = ("document", "signer", "signature")
    DOCUMENT_FIELD_NUMBER: _ClassVar[int]
    SIGNER_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    document: bytes
    signer: str
    signature: bytes
    def __init__(self, document: _Optional[bytes] = ..., signer: _Optional[str] = ..., signature: _Optional[bytes] = ...) -> None: ...

class EnrolRequest(_message.Message):
    __slots__ = ("token", "site", "csr", "node_key", "signing_key", "proof", "version")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    CSR_FIELD_NUMBER: _ClassVar[int]
    NODE_KEY_FIELD_NUMBER: _ClassVar[int]
    SIGNING_KEY_FIELD_NUMBER: _ClassVar[int]
    PROOF_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    token: str
    site: str
    csr: bytes
    node_key: bytes
    signing_key: str
    proof: bytes
    version: str
    def __init__(self, token: _Optional[str] = ..., site: _Optional[str] = ..., csr: _Optional[bytes] = ..., node_key: _Optional[bytes] = ..., signing_key: _Optional[str] = ..., proof: _Optional[bytes] = ..., version: _Optional[str] = ...) -> None: ...

class EnrolReply(_message.Message):
    __slots__ = ("certificate", "ca", "coordinator_key", "governance_port", "fleet_port")
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    CA_FIELD_NUMBER: _ClassVar[int]
    COORDINATOR_KEY_FIELD_NUMBER: _ClassVar[int]
    GOVERNANCE_PORT_FIELD_NUMBER: _ClassVar[int]
    FLEET_PORT_FIELD_NUMBER: _ClassVar[int]
    certificate: bytes
    ca: bytes
    coordinator_key: str
    governance_port: int
    fleet_port: int
    def __init__(self, certificate: _Optional[bytes] = ..., ca: _Optional[bytes] = ..., coordinator_key: _Optional[str] = ..., governance_port: _Optional[int] = ..., fleet_port: _Optional[int] = ...) -> None: ...

class ErrorReply(_message.Message):
    __slots__ = ("problem", "where", "remedy")
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    WHERE_FIELD_NUMBER: _ClassVar[int]
    REMEDY_FIELD_NUMBER: _ClassVar[int]
    problem: str
    where: str
    remedy: str
    def __init__(self, problem: _Optional[str] = ..., where: _Optional[str] = ..., remedy: _Optional[str] = ...) -> None: ...

class HelloRequest(_message.Message):
    __slots__ = ("version", "clock", "status")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CLOCK_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    version: str
    clock: float
    status: bytes
    def __init__(self, version: _Optional[str] = ..., clock: _Optional[float] = ..., status: _Optional[bytes] = ...) -> None: ...

class HelloReply(_message.Message):
    __slots__ = ("version", "clock", "certificate_not_after", "ca_not_after", "warnings")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CLOCK_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_NOT_AFTER_FIELD_NUMBER: _ClassVar[int]
    CA_NOT_AFTER_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    version: str
    clock: float
    certificate_not_after: float
    ca_not_after: float
    warnings: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, version: _Optional[str] = ..., clock: _Optional[float] = ..., certificate_not_after: _Optional[float] = ..., ca_not_after: _Optional[float] = ..., warnings: _Optional[_Iterable[str]] = ...) -> None: ...

class RenewRequest(_message.Message):
    __slots__ = ("csr",)
    CSR_FIELD_NUMBER: _ClassVar[int]
    csr: bytes
    def __init__(self, csr: _Optional[bytes] = ...) -> None: ...

class Certificate(_message.Message):
    __slots__ = ("certificate", "ca")
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    CA_FIELD_NUMBER: _ClassVar[int]
    certificate: bytes
    ca: bytes
    def __init__(self, certificate: _Optional[bytes] = ..., ca: _Optional[bytes] = ...) -> None: ...

class StudiesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StudiesReply(_message.Message):
    __slots__ = ("offers", "withdrawn", "runs")
    OFFERS_FIELD_NUMBER: _ClassVar[int]
    WITHDRAWN_FIELD_NUMBER: _ClassVar[int]
    RUNS_FIELD_NUMBER: _ClassVar[int]
    offers: _containers.RepeatedCompositeFieldContainer[Signed]
    withdrawn: _containers.RepeatedScalarFieldContainer[str]
    runs: _containers.RepeatedCompositeFieldContainer[Run]
    def __init__(self, offers: _Optional[_Iterable[_Union[Signed, _Mapping]]] = ..., withdrawn: _Optional[_Iterable[str]] = ..., runs: _Optional[_Iterable[_Union[Run, _Mapping]]] = ...) -> None: ...

class Run(_message.Message):
    __slots__ = ("name", "study", "state")
    NAME_FIELD_NUMBER: _ClassVar[int]
    STUDY_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    name: str
    study: str
    state: str
    def __init__(self, name: _Optional[str] = ..., study: _Optional[str] = ..., state: _Optional[str] = ...) -> None: ...

class Accepted(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ReportRequest(_message.Message):
    __slots__ = ("status",)
    STATUS_FIELD_NUMBER: _ClassVar[int]
    status: bytes
    def __init__(self, status: _Optional[bytes] = ...) -> None: ...

class ReceiptsRequest(_message.Message):
    __slots__ = ("run", "after")
    RUN_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    run: str
    after: int
    def __init__(self, run: _Optional[str] = ..., after: _Optional[int] = ...) -> None: ...

class ReceiptsReply(_message.Message):
    __slots__ = ("receipts", "more")
    RECEIPTS_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    receipts: _containers.RepeatedCompositeFieldContainer[Signed]
    more: bool
    def __init__(self, receipts: _Optional[_Iterable[_Union[Signed, _Mapping]]] = ..., more: _Optional[bool] = ...) -> None: ...

class HeadsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Signer(_message.Message):
    __slots__ = ("site", "key")
    SITE_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    site: str
    key: str
    def __init__(self, site: _Optional[str] = ..., key: _Optional[str] = ...) -> None: ...

class HeadsReply(_message.Message):
    __slots__ = ("heads", "signers")
    HEADS_FIELD_NUMBER: _ClassVar[int]
    SIGNERS_FIELD_NUMBER: _ClassVar[int]
    heads: _containers.RepeatedCompositeFieldContainer[Signed]
    signers: _containers.RepeatedCompositeFieldContainer[Signer]
    def __init__(self, heads: _Optional[_Iterable[_Union[Signed, _Mapping]]] = ..., signers: _Optional[_Iterable[_Union[Signer, _Mapping]]] = ...) -> None: ...

class LinesRequest(_message.Message):
    __slots__ = ("run", "first", "count")
    RUN_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    run: str
    first: int
    count: int
    def __init__(self, run: _Optional[str] = ..., first: _Optional[int] = ..., count: _Optional[int] = ...) -> None: ...

class LinesReply(_message.Message):
    __slots__ = ("lines",)
    LINES_FIELD_NUMBER: _ClassVar[int]
    lines: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, lines: _Optional[_Iterable[str]] = ...) -> None: ...

class EventsRequest(_message.Message):
    __slots__ = ("after",)
    AFTER_FIELD_NUMBER: _ClassVar[int]
    after: int
    def __init__(self, after: _Optional[int] = ...) -> None: ...

class Event(_message.Message):
    __slots__ = ("sequence", "at", "run", "kind", "text")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    at: float
    run: str
    kind: str
    text: str
    def __init__(self, sequence: _Optional[int] = ..., at: _Optional[float] = ..., run: _Optional[str] = ..., kind: _Optional[str] = ..., text: _Optional[str] = ...) -> None: ...
