"""What crosses a process or a restart: plans, tickets, manifests, tables. No torch, no ray."""
