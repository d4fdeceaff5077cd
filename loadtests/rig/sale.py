"""Buyers of a sale in which numbers are held while they are paid for, and what each of them was told to own."""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections import defaultdict
from typing import TYPE_CHECKING, Any, NamedTuple

from loadtests.rig.clients import Client
from loadtests.rig.waiting import PATIENCE, wait_until

if TYPE_CHECKING:
    from loadtests.rig.service import Service

#: How many numbers one buyer may have.
EACH = 4
#: Seconds after which whoever found no room, or got no answer, comes again.
PAUSE = 0.2


class Buyer(NamedTuple):
    """Of every three the first one abandons what it holds, and now and then one takes fewer than it held."""

    number: int

    @property
    def name(self) -> str:
        return f"buyer-{self.number}"

    @property
    def wants(self) -> int:
        return 1 + self.number % EACH

    @property
    def abandons(self) -> bool:
        return self.number % 3 == 0

    @property
    def keeps(self) -> int:
        """How many it confirms of what it has got."""
        return max(1, self.wants - 1) if self.number % 7 == 0 else self.wants


class Sale:
    """Everybody buys in the background until the counter is sold out; who finds no room while numbers are held waits.

    `hold` is for how many seconds. Whatever gets no answer or a 503 is asked for again: claims with their keys,
    confirmations as they are.
    """

    def __init__(self, service: Service, counter: str, buyers: int, hold: int, connections: int = 64) -> None:
        self._port = service.port
        self._path = f"/counters/{counter}"
        self._buyers = buyers
        self._hold = hold
        self._connections = connections
        #: The numbers that are confirmed, by buyer; how many holds were abandoned, and how many expired before that.
        self.owned: dict[str, list[int]] = defaultdict(list)
        self.abandoned = self.late = 0
        #: Whether a buyer was told that nothing is left, and nothing held that may come back.
        self.sold_out = False
        self.wrong: list[str] = []
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self._thread.start()

    @property
    def sold(self) -> int:
        """How many numbers are confirmed."""
        return sum(map(len, [*self.owned.values()]))

    def wait_for(self, numbers: int) -> None:
        """Wait until so many are confirmed, or nobody buys any more."""
        wait_until(lambda: self.sold >= numbers or not self._thread.is_alive(), f"{numbers} numbers to be sold")

    def join(self) -> None:
        """Wait until everybody has bought or was told that nothing is left."""
        self._thread.join(5 * PATIENCE)
        assert not self._thread.is_alive(), f"buyers hang with {self.sold} numbers sold"

    async def _run(self) -> None:
        queue = asyncio.Queue[Buyer]()
        for number in range(self._buyers):
            queue.put_nowait(Buyer(number))

        async def serve() -> None:
            client = Client(self._port)
            while not queue.empty():
                buyer = queue.get_nowait()
                if not await self._buys(client, buyer):
                    queue.put_nowait(buyer)
                    await asyncio.sleep(PAUSE)
            client.close()

        await asyncio.gather(*(serve() for _ in range(self._connections)))

    async def _buys(self, client: Client, buyer: Buyer) -> bool:
        """One visit; returns whether it was the last one."""
        held = await self._claims(client, buyer, buyer.wants)
        if held is None and buyer.wants > 1:
            held = await self._claims(client, buyer, 1)
        if held is None:
            if self.sold_out:
                return True
            _, counter = await self._ask(client, self._path, "GET")
            self.sold_out = counter["halted"] and "held" not in counter
            return self.sold_out
        too_late = self.sold_out
        if buyer.abandons:
            self.abandoned += 1
            return True
        last, hold, size = held["request_count"], held["hold"], held["size"]
        more = await self._claims(client, buyer, EACH + 1 - size)
        keeps = min(size, buyer.keeps)
        status, told = await self._ask(client, f"{self._path}/holds/{hold}" + (f"?n={keeps}" if keeps < size else ""))
        if status == 410:
            self.late += 1
            return False
        # The hold has lasted until now.
        if more is not None:
            self.wrong.append(f"{buyer.name} got more than {EACH}")
        if too_late:
            self.wrong.append(f"{buyer.name} got numbers of a counter that was sold out, with nothing held")
        if status != 200 or told["numbers"] != [[last - size + 1, last - size + keeps]]:
            self.wrong.append(f"{buyer.name} confirmed {keeps} of {size} up to {last}: {status} {told}")
            return True
        self.owned[buyer.name] += range(last - size + 1, last - size + keeps + 1)
        return True

    async def _claims(self, client: Client, buyer: Buyer, size: int) -> dict[str, Any] | None:
        """What a claim with a hold got, or None if it was refused."""
        key = uuid.uuid4().hex
        query = f"?n={size}&hold={self._hold}&for={buyer.name}"
        status, told = await self._ask(client, self._path + query, Idempotency_Key=key)
        if status not in (200, 429):
            self.wrong.append(f"{buyer.name} claimed {size}: {status} {told}")
        return {**told, "size": size} if status == 200 else None

    async def _ask(self, client: Client, path: str, method: str = "POST", **headers: Any) -> tuple[int, Any]:
        """Ask until there is an answer."""
        while True:
            try:
                status, body = await client.request(path, method, **headers)
                if status != 503:
                    return status, body
            except (OSError, asyncio.IncompleteReadError):
                pass
            await asyncio.sleep(PAUSE)
