"""What an operator can say about a depot."""

from dataclasses import dataclass, field
from pathlib import Path

from ibpfs.depot.server.access import Access
from ibpfs.depot.server.reach import Reach

DAY = 86400
DEFAULT_MAX_LEASE = 30 * DAY


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Sizes in bytes, times in seconds. `listen`: HOST, PORT pairs, port 0 = the one recorded in the store, or a new
    one. `max_lease` None = no limit. `public`: the HOST, PORT that capabilities name, None = the address itself.
    `resources`: further directories, each with its capacity. `reach`: the operator's lists and admin ports; the rest of
    it follows from where the depot listens. `password`: of STATUS CHANGE, None refuses it. `tls`: also
    speak TLS where TCP is listened on."""

    store: Path
    listen: tuple[tuple[str, int], ...] = ()
    unix: Path | None = None
    public: tuple[str, int] | None = None
    capacity: int | None = None
    max_lease: int | None = DEFAULT_MAX_LEASE
    permanent: bool = False
    grace: float = DAY
    max_connections: int = 256
    idle_timeout: float = 120.0
    exit_when_unused: float | None = None
    tls: bool = True
    resources: tuple[tuple[Path, int | None], ...] = ()
    access: Access = field(default_factory=Access)
    reach: Reach = field(default_factory=Reach)
    password: str | None = field(default=None, repr=False)
