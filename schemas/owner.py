"""Who works on a run: numbered claims in the run directory, of which the newest is the owner's."""

import re

from schemas.section import Section

OWNERS_FOLDER = ".owners"
_NAME = re.compile(r"[0-9]{8}-[0-9a-f]{8}\.json")


class Claim(Section):
    """A driver's claim to a run. Its holder rewrites it as long as it lives: `beat` counts how often."""

    number: int
    token: str
    host: str
    pid: int
    process: str = ""  # tells this very process from any other of this machine; empty where that cannot be told
    lease_s: float  # a holder that has not rewritten its claim for so long is taken for dead
    beat: int = 0
    released: bool = False

    @property
    def name(self) -> str:
        """The file's name. Of two claims the greater name is the newer, or wins."""
        return f"{self.number:08d}-{self.token}.json"


def is_claim(name: str) -> bool:
    """Whether a file of this name is a claim; nothing else in the folder counts."""
    return _NAME.fullmatch(name) is not None
