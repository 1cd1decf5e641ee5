"""A view for tests."""

from ebdiff_orchestrator.run.view import View


class Listener(View):
    """A view that remembers what it was told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def line(self, text: str) -> None:
        self.said.append(text)
