"""What people see of a run: progress and preview on standard error, the result on standard output."""

from __future__ import annotations

from typing import Any, Final

from rich.console import Console as RichConsole
from rich.panel import Panel
from rich.table import Table

from fedmpt.cli.progress import ProgressBar
from fedmpt.engine.listener import Preview, RoundRecord
from privacy import display_epsilon

_NOTICED_LOSS: Final = 0.5  # points of mAP


class Console:
    """Writes a run to the terminal; plain lines where standard error is no terminal."""

    def __init__(self) -> None:
        self._err = RichConsole(stderr=True, highlight=False)
        self._out = RichConsole(highlight=False)
        self._bar = ProgressBar(self._err)

    def progress(self, label: str, done: int, total: int) -> None:
        """Show how far a long step is."""
        self._bar.progress(label, done, total)

    def preview(self, preview: Preview) -> None:
        """Show one screen of what is about to happen."""
        self._bar.end()
        table = Table.grid(padding=(0, 2))
        table.add_column(style="bold", no_wrap=True)
        table.add_column()
        for name, text in _preview_rows(preview):
            table.add_row(name, text)
        self._err.print(Panel(table, title="fedmpt train", title_align="left", expand=False))
        if preview.target_epsilon is None:
            self.warning(
                "NO DIFFERENTIAL PRIVACY (--no-dp): updates and the tuned model may reveal training images"
            )
        if preview.secagg != "masking" and not preview.alone:
            self.warning(preview.statement)

    def round_done(self, record: RoundRecord) -> None:
        """Show one line for a round."""
        number = f"{record.round:>{len(str(record.rounds))}}"
        name = f"round {number}/{record.rounds}" if record.round else "zero-shot"
        metrics = record.metrics
        figures = (
            f"mAP {metrics.mAP:5.1f}  CF1 {metrics.CF1:5.1f}  OF1 {metrics.OF1:5.1f}"
            if metrics is not None
            else f"{'not evaluated':31}"
        )
        parts = [f"{name:<12} {figures}"]
        if record.epsilon is not None:
            parts.append(f"epsilon {display_epsilon(record.epsilon[1])}")
        if record.round:
            asked = len(record.survivors) + sum(
                1 for client, _ in record.dropped if client not in record.survivors
            )
            parts.append(f"{len(record.survivors)}/{asked} clients")
            parts.append(f"{record.bytes_up / 1e3:.1f} kB up")
            parts.append(f"{sum(seconds for _, seconds in record.seconds):.1f} s")
        if record.attempts > 1:
            parts.append(f"{record.attempts} attempts")
        if record.clipped > 0:
            parts.append(f"{100 * record.clipped:.2g}% of values clipped")
        self._err.print("  ".join(parts), soft_wrap=True)

    def warning(self, text: str) -> None:
        """Say it loudly."""
        self._err.print(f"[bold red]WARNING[/]: {text}", soft_wrap=True)

    def show_result(self, summary: dict[str, Any]) -> None:
        """Print the result table."""
        table = Table(title=f"{summary['method']} on {summary['data']}", title_justify="left")
        for column in ("", "mAP", "CF1", "OF1"):
            table.add_column(column, justify="left" if not column else "right")
        for label, key in (
            ("zero-shot, pooled patches", "zero_shot"),
            ("zero-shot, class token", "zero_shot_class_token"),
            (_after(summary), "final"),
        ):
            table.add_row(label, *_percents(summary[key]))
        if summary["final_clients"] is not None:
            for label, key in (("lowest of a client", "min"), ("highest of a client", "max")):
                table.add_row(label, *_percents(summary["final_clients"][key]))
        self._out.print(table)
        lost = summary["zero_shot"]["mAP"] - summary["final"]["mAP"]
        if lost >= _NOTICED_LOSS:
            wider = "a larger --dp-epsilon, " if summary["privacy"]["clients"] else ""
            self._out.print(
                f"[bold red]tuning did harm: {lost:.1f} points of mAP below the frozen CLIP[/], which is the better "
                f"model here; {wider}more images or clients, or a smaller --lr may help",
                soft_wrap=True,
            )
        if summary["compatibility"] is not None:
            best = summary["final_oracle"]
            self._out.print(
                f"[bold red]{summary['compatibility']}[/]; optimistic, at the best threshold on the test set: CF1 "
                f"{best['CF1_oracle_optimistic']:.1f} (mean of classes {best['CF1_mean_oracle_optimistic']:.1f}) "
                f"OF1 {best['OF1_oracle_optimistic']:.1f}",
                soft_wrap=True,
            )
        if summary["protocol"] != "standard":
            top = summary["final_top_k"]
            self._out.print(
                f"{summary['protocol']}, {len(summary['final_AP'])} classes scored; of the three highest scores "
                f"CF1 {top['CF1_top3']:.1f} OF1 {top['OF1_top3']:.1f}, of the five highest "
                f"CF1 {top['CF1_top5']:.1f} OF1 {top['OF1_top5']:.1f}"
            )
        accounts = summary["privacy"]["clients"]
        if accounts:
            clients = Table(
                title=f"privacy: {summary['privacy']['protected']}, epsilon at delta {summary['privacy']['delta']:g}",
                title_justify="left",
            )
            counted = "clients" if summary["privacy"]["unit"] == "client" else "images"
            carried = any(a["lifetime_spent"] > a["epsilon"] + 1e-3 for a in accounts)
            columns = ["client", counted, "epsilon", "of", "noise", "rate", "steps"]
            for column in columns + ["all runs", "lifetime"] * carried:
                clients.add_column(column, justify="right")
            for account in accounts:
                row = [
                    str(account["client"]),
                    str(account["n_public"]),
                    display_epsilon(account["epsilon"]),
                    f"{summary['privacy']['target_epsilon']:g}",
                    f"{account['noise_multiplier']:.3f}",
                    f"{account['sample_rate']:.3f}",
                    str(account["steps"]),
                ]
                if carried:
                    row += [
                        display_epsilon(account["lifetime_spent"]),
                        f"{account['lifetime_epsilon']:g}",
                    ]
                clients.add_row(*row)
            self._out.print(clients)
        else:
            self._out.print("privacy: NONE (--no-dp)")
        secagg = summary["secagg"]
        self._out.print(
            f"secure aggregation: {secagg['mode']}, {secagg['bytes_up_per_client_round'] / 1e3:.1f} kB up a client and "
            f"round, {secagg['seconds']:.1f} s in all, {secagg['dropped']} drop-outs"
        )
        if summary["images_skipped"]:
            self._out.print(
                f"images skipped because they could not be read: {summary['images_skipped']}"
            )
        self._out.print(
            f"{summary['seconds']:.0f} s in all; run folder: {summary['folder']}", soft_wrap=True
        )
        self._out.print(f"to look at it: fedmpt report {summary['folder']}", soft_wrap=True)


def _preview_rows(preview: Preview) -> list[tuple[str, str]]:
    sizes = preview.sizes
    declared = " (declared, rounded down to tens)" if preview.target_epsilon is not None else ""
    images = f", of {min(sizes)} to {max(sizes)} images{declared}" if sizes else ""
    rows = [
        ("method", f"{preview.method}, {preview.parameters:,} tunable values"),
        ("backbone", f"{preview.backbone} (frozen)"),
        ("data", preview.data),
        ("", " ".join(f"{name} {text[:8]}" for name, text in preview.protocol_digests.items())),
        ("clients", f"{preview.clients}{images}"),
        ("rounds", f"{preview.rounds}, {preview.cohort} clients each; {preview.local}"),
    ]
    if preview.target_epsilon is not None and preview.delta is not None:
        rows.append(
            (
                "privacy",
                f"{preview.protected}: epsilon at most {preview.target_epsilon:g} at delta "
                f"{preview.delta:g}, against {preview.against}",
            )
        )
        rows.append(
            (
                "",
                f"noise multiplier {_interval(preview.noise_multipliers, '.3f')}, sampling rate "
                f"{_interval(preview.sample_rates, '.3f')}, {_interval(preview.steps, 'd')} steps a client, "
                f"clipped and noised in {preview.space}",
            )
        )
        projected = f"projected epsilon per client {_interval(preview.planned_epsilons, '.3f')}"
        if preview.planned_epsilons and preview.planned_epsilons[1] > preview.target_epsilon:
            projected += ", earlier runs on the ledger included"
        rows.append(("", projected))
    else:
        rows.append(("privacy", "NONE"))
    if preview.tolerated is not None and not preview.alone:
        threshold, colluders = preview.tolerated
        rows.append(
            (
                "aggregation",
                f"masking: the server learns the sum only; a round needs {threshold} of {preview.cohort} clients, "
                f"{colluders} may collude with the server",
            )
        )
    else:
        rows.append(("aggregation", preview.statement))
    if preview.alone:
        return rows
    rows.append(
        (
            "traffic",
            f"{preview.bytes_up / 1e3:.1f} kB up, {preview.bytes_down / 1e3:.1f} kB down a client and round "
            "(protocol; the model comes on top)",
        )
    )
    if preview.setup_bytes is not None:
        up, down = preview.setup_bytes
        rows.append(
            ("", f"once, to share the key: up to {up / 1e3:.1f} kB up, {down / 1e3:.1f} kB down")
        )
    return rows


def _after(summary: dict[str, Any]) -> str:
    text = f"after {summary['rounds']} rounds"
    return text if summary["final_clients"] is None else f"{text}, mean over clients"


def _percents(figures: dict[str, float]) -> list[str]:
    return [f"{figures[metric]:.1f}" for metric in ("mAP", "CF1", "OF1")]


def _interval(values: tuple[float, float] | None, form: str) -> str:
    if values is None:
        return "-"
    low, high = (format(value, form) for value in values)
    return low if low == high else f"{low} to {high}"
