"""`python -m tests.chaos`, `make chaos`: run a campaign, print its report, say whether it held.

Every option is also a variable: `CHAOS_KILLS=8 CHAOS_STREAMS=100 make chaos`.
"""

import asyncio
import secrets
import sys
import tempfile
import time
from pathlib import Path

import click

from tests.chaos import campaign, journals
from tests.chaos.checker import check
from tests.chaos.options import ALL, IN_A_CLUSTER, Kind, Options, Victim
from tests.chaos.report import Told, render

CHOICES = [f"{service}:{kind}" for service, kind in IN_A_CLUSTER]


@click.command(context_settings={"auto_envvar_prefix": "CHAOS", "show_default": True})
@click.option("--kills", default=60, help="Faults in all.")
@click.option("--streams", default=2_000)
@click.option("--seed", type=int, help="Decides streams and faults; chosen and printed if absent.")
@click.option("--concurrency", default=150, help="Most streams at the same time.")
@click.option("--victim", "victims", multiple=True, type=click.Choice(CHOICES), help="Repeatable.")
@click.option("--gap-s", type=(float, float), default=(1.0, 4.0), help="Between faults.")
@click.option("--overlap", is_flag=True, help="Don't wait for healing, but of the same service.")
@click.option("--copies", default=2, help="Processes of each service.")
@click.option("--nats-nodes", type=click.Choice(["1", "3"]), default="1")
@click.option("--folder", type=click.Path(path_type=Path), help="For mesh, logs and journals.")
@click.option("--report", type=click.Path(path_type=Path), default="build/chaos/report.md")
@click.option("--check", "checked", type=click.Path(path_type=Path), help="Judge old journals.")
def main(
    kills: int,
    streams: int,
    seed: int | None,
    concurrency: int,
    victims: tuple[str, ...],
    gap_s: tuple[float, float],
    overlap: bool,
    copies: int,
    nats_nodes: str,
    folder: Path | None,
    report: Path,
    checked: Path | None,
) -> None:
    """Exits with 1 if any invariant was violated."""
    if checked is not None:
        old = journals.load(checked)
        violations = check(old)
        text = render(old, violations, Told(0.0, "journals of an earlier campaign", {}))
    else:
        result = asyncio.run(
            campaign.run(
                Options(
                    folder=folder.absolute() if folder is not None else _new_folder(),
                    seed=secrets.randbelow(10**9) if seed is None else seed,
                    kills=kills,
                    streams=streams,
                    concurrency=concurrency,
                    victims=tuple(map(_victim, victims))
                    or (ALL if nats_nodes == "1" else IN_A_CLUSTER),
                    gap_s=gap_s,
                    overlap=overlap,
                    copies=copies,
                    nats_nodes=int(nats_nodes),
                )
            )
        )
        violations, text = result.violations, result.report
        report.parent.mkdir(parents=True, exist_ok=True)
        report.write_text(text, encoding="utf-8")
    print(text)
    sys.exit(1 if violations else 0)


def _victim(choice: str) -> Victim:
    service, _, kind = choice.partition(":")
    kinds: dict[str, Kind] = {"kill": "kill", "stop": "stop"}
    return service, kinds[kind]


def _new_folder() -> Path:
    """Other users may pass it: as root, PostgreSQL runs as somebody else."""
    folder = Path(tempfile.mkdtemp(prefix=time.strftime("braid-chaos-%H%M%S-")))
    folder.chmod(0o711)
    print(f"mesh, logs and journals: {folder}", file=sys.stderr)
    return folder


if __name__ == "__main__":
    main()
