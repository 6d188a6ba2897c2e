"""Rate limits per client, for requests and for login tries: kept in memory, for some thousand clients."""

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

Clock = Callable[[], float]  # seconds, never going back
MAX_CLIENTS = 4096  # remembered; the one not seen for longest is forgotten first

Value = TypeVar("Value")


def client_of(address: str) -> str:
    """The client that an address belongs to: an IPv6 host owns its whole /64, so that is one client.

    >>> client_of("2001:db8::1") == client_of("2001:db8::ffff")
    True
    """
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((parsed, 64), strict=False))


class RecentlyWritten(Generic[Value]):
    """A bounded mapping: the `max_clients` entries that were written last. `get` does not refresh an entry."""

    def __init__(self, max_clients: int = MAX_CLIENTS) -> None:
        self.max_clients, self.entries = max_clients, OrderedDict[str, Value]()

    def get(self, key: str) -> Value | None:
        return self.entries.get(key)

    def put(self, key: str, value: Value) -> None:
        self.entries[key] = value
        self.entries.move_to_end(key)
        while len(self.entries) > self.max_clients:
            self.entries.popitem(last=False)

    def drop(self, key: str) -> None:
        self.entries.pop(key, None)


class Rate:
    """A token bucket per client: `burst` requests at once, then `per_second`.

    try_acquire(client) -> 0.0 when the request may pass (it is counted), else seconds until the next one may.
    """

    def __init__(
        self, per_second: float, burst: int, clock: Clock = time.monotonic, max_clients: int = MAX_CLIENTS
    ) -> None:
        self.per_second, self.burst, self.clock = per_second, float(burst), clock
        # by client: (requests allowed, when that was counted)
        self.buckets = RecentlyWritten[tuple[float, float]](max_clients)

    def try_acquire(self, client: str) -> float:
        now = self.clock()
        allowance, then = self.buckets.get(client) or (self.burst, now)
        allowance = min(self.burst, allowance + (now - then) * self.per_second)
        passes = allowance >= 1
        self.buckets.put(client, (allowance - 1 if passes else allowance, now))
        return 0.0 if passes else (1 - allowance) / self.per_second


class LoginTries(NamedTuple):
    """Passwords a client tried since the last right one."""

    number: int
    last: float  # seconds of the clock


class LoginThrottle:
    """Login tries: `free_tries` of them at once, then one after 30 s, one after 60 s, ... at most one every 15 min.

    A try counts when it begins, so that many at once do not get around it; they are forgotten after the right password,
    and after an hour without a try.
    """

    def __init__(
        self,
        clock: Clock = time.monotonic,
        free_tries: int = 5,
        first_wait: float = 30.0,
        max_wait: float = 900.0,
        forget_after: float = 3600.0,
        max_clients: int = MAX_CLIENTS,
    ) -> None:
        self.clock, self.free_tries, self.first_wait = clock, free_tries, first_wait
        self.max_wait, self.forget_after = max_wait, forget_after
        self.tries = RecentlyWritten[LoginTries](max_clients)

    def begin_try(self, client: str) -> float:
        """0.0 when a client may try now, and the try is counted; else seconds until it may."""
        now = self.clock()
        tries = self.tries.get(client)
        if tries is None or now - tries.last >= self.forget_after:
            tries = LoginTries(0, now)
        if tries.number >= self.free_tries:
            doublings = min(tries.number - self.free_tries, 32)  # beyond that it is the longest wait anyway
            seconds = tries.last + min(self.max_wait, self.first_wait * 2**doublings) - now
            if seconds > 0:
                return seconds
        self.tries.put(client, LoginTries(tries.number + 1, now))
        return 0.0

    def succeeded(self, client: str) -> None:
        """The password was right: forget the client's tries."""
        self.tries.drop(client)
