"""The verbs, a few lines each: call the stages, hand results to `ui`. Everything heavy is imported when a
verb runs, not before."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import logging
import os
import re
import sys
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from homelab import cli_chat as cli_chat  # for its verbs
from homelab import cli_clients as cli_clients
from homelab import cli_keys, cli_test, terminal
from homelab.errors import DeployError, DoesNotFit, HomelabError, InventoryError, NodeError
from homelab.verbs import (
    DECIDE,
    DO,
    SEE,
    USE,
    InventoryOption,
    JsonOption,
    NodeOption,
    UpgradeOption,
    YesOption,
    app,
    completed,
    deployed_secrets,
    household_of,
    inventory_option,
    refuse_unreachable,
    show_unreachable,
    survey_of,
)

if TYPE_CHECKING:
    from rich.text import Text

    from homelab.facts import DeployedService, Survey
    from homelab.pipeline import Household
    from homelab.plan import Options, Plan
    from homelab.secrets import Secrets
    from homelab.service import Service


def _complete_source(incomplete: str) -> list[str]:
    from homelab import complete

    return [name for name in complete.catalog() if name.startswith(incomplete)]


class _Talk(logging.Handler):
    """What is logged takes the way of everything that is shown."""

    def emit(self, record: logging.LogRecord) -> None:
        from homelab import ui

        ui.say(record.getMessage())


def _version(wanted: bool) -> None:
    if wanted:
        from homelab import __version__

        typer.echo(f"homelab {__version__}")
        raise typer.Exit


@app.callback()
def options(
    ctx: typer.Context,
    inventory: InventoryOption = None,
    verbose: Annotated[
        int,
        typer.Option(
            "--verbose", "-v", count=True, help="Show what is run on the nodes; twice: with what it says."
        ),
    ] = 0,
    no_color: Annotated[bool, typer.Option("--no-color", help="No colours (as NO_COLOR=1).")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_version)
    ] = False,
) -> None:
    ctx.obj = inventory
    logging.basicConfig(
        level=(logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)], handlers=[_Talk()]
    )
    logging.getLogger("asyncssh").setLevel(logging.WARNING)
    if no_color:
        from homelab import ui

        ui.no_color()
    if ctx.invoked_subcommand is None:
        _home(ctx)


def _home(ctx: typer.Context) -> None:
    """`homelab` by itself: the house in five lines, or how to begin one."""
    from homelab import ui

    if ctx.obj is None and not Path("inventory.yml").exists():
        ui.sentence(
            "Every GPU in the house becomes one private LLM endpoint. There is no inventory.yml here yet."
        )
        ui.next_steps("homelab init", "it lies elsewhere: homelab -i FILE", "all verbs: homelab --help")
        return
    from homelab import pipeline, state
    from homelab import status as health
    from homelab.endpoints import deployed
    from homelab.ui import status as screen

    household = household_of(ctx, None)
    survey, errors = survey_of(household)
    secrets = asyncio.run(pipeline.secrets_of(household, survey))
    ca_file = state.ca_file(household.inventory.cluster)
    now = asyncio.run(health.status(household.inventory, survey, secrets, ca_file=ca_file))
    again = inventory_option(household)
    if any(not household.inventory.nodes[n].away for n in errors):
        step = f"homelab discover{again}"
    elif not any(True for _ in deployed(household.inventory, survey)):
        step = f"homelab plan{again}, then homelab deploy{again}"
    elif now.unhealthy:
        step = f"homelab status{again}"
    else:
        step = f"homelab top{again}, homelab connect{again}"
    ui.show(screen.house(now, step, ui.width()))


@app.command(rich_help_panel=DO)
def init(ctx: typer.Context, inventory: InventoryOption = None) -> None:
    """Write an example inventory to start from. Overwrites nothing."""
    from homelab import resources, ui

    path = inventory or ctx.obj or Path("inventory.yml")
    if os.path.lexists(path):
        raise HomelabError(
            f"`{path}` is there already",
            hint=f"Edit it, then: homelab discover{'' if str(path) == 'inventory.yml' else f' -i {path}'}",
        )
    _write(path, resources.path("inventory.example.yml").read_text())
    ui.write(f"Wrote {path}: a whole household as an example. Keep what you have, then: homelab discover")


@app.command(rich_help_panel=SEE)
def discover(
    ctx: typer.Context,
    inventory: InventoryOption = None,
    json: JsonOption = False,
    save: Annotated[
        Path | None,
        typer.Option("--save", help="Write all that planning needs to this file: homelab plan --facts FILE."),
    ] = None,
) -> None:
    """Ask every node what it has: GPUs, memory, Docker, what runs. Changes nothing."""
    import time

    household = household_of(ctx, inventory)
    begun = time.monotonic()
    survey, errors = survey_of(household)
    seconds = time.monotonic() - begun
    from homelab import pipeline, ui

    if save is not None:
        complete = asyncio.run(pipeline.with_models(household, survey, everything=True))
        _write(save, complete.model_dump_json(indent=1) + "\n")
        ui.say(f"Saved to {save}")
    if json:
        from homelab import documents

        ui.print_json(documents.discover_document(household.inventory, survey))
    else:
        from homelab.ui import discover as screen

        ui.show(screen.lines(household.inventory, survey, seconds, ui.width()))
        if any(r.reachable for r in survey.nodes.values()):
            ui.next_steps(f"homelab plan{inventory_option(household)}")
    refuse_unreachable(household, errors)


FactsOption = Annotated[
    Path | None, typer.Option("--facts", help="Plan from a saved survey, without a network.")
]


@app.command(rich_help_panel=DECIDE)
def plan(
    ctx: typer.Context,
    inventory: InventoryOption = None,
    json: JsonOption = False,
    facts: FactsOption = None,
    check: Annotated[
        bool, typer.Option("--check", help="Exit with 5 if there is anything to change.")
    ] = False,
    upgrade: UpgradeOption = False,
    verbose: Annotated[
        bool,
        typer.Option("--verbose", "-v", help="With every term, rejection and alternative, as homelab why."),
    ] = False,
) -> None:
    """Show what would go where, and why. Changes nothing."""
    from homelab import documents, pipeline, ui

    household = household_of(ctx, inventory)
    planned = _plan(household, facts, upgrade=upgrade, everything=verbose)
    decided, errors = planned.plan, planned.errors
    if json or verbose:
        decided = pipeline.with_speeds(decided)
    if json:
        ui.print_json(documents.plan_document(decided))
    else:
        _show_plan(decided, household, verbose=verbose)
        if decided.todo and not decided.layout.unplaced and facts is None:
            again = inventory_option(household)
            ui.next_steps(f"homelab deploy{again}", f"the reasons: homelab why MODEL{again}")
    _refuse_unplaced(decided, household, errors)
    refuse_unreachable(household, errors)
    if check and decided.todo:
        raise typer.Exit(5)


@app.command(rich_help_panel=DECIDE, short_help="Show why a model goes where it does, and not elsewhere.")
def why(
    ctx: typer.Context,
    model: Annotated[
        str,
        typer.Argument(
            help="A model of the inventory, `gateway`, or `front`.",
            autocompletion=completed("models", more=("gateway",), themselves=("front",)),
        ),
    ],
    inventory: InventoryOption = None,
    json: JsonOption = False,
    facts: FactsOption = None,
) -> None:
    """Show why a model goes where it does: its memory term by term, why not elsewhere, and what would change
    it. Changes nothing."""
    from homelab import documents, pipeline, ui
    from homelab.inventory import did_you_mean
    from homelab.ui import why as screen

    household = household_of(ctx, inventory)
    known = [*household.inventory.models, "gateway", *(["front"] if household.inventory.front else [])]
    if model not in known:
        raise InventoryError(
            f"No model `{model}` in `{household.path}`{did_you_mean(model, known)}",
            hint=f"There are: {', '.join(known)}",
        )
    planned = _plan(household, facts, everything=True)
    decided = pipeline.with_speeds(planned.plan)
    if json:
        ui.print_json(documents.why_document(decided, model))
    else:
        ui.show(screen.lines(decided, model, ui.width()))
        ui.next_steps(f"homelab plan{inventory_option(household)}")
    refuse_unreachable(household, planned.errors)


@app.command(rich_help_panel=DECIDE, short_help="Write the files that deploy would put on each node.")
def render(
    ctx: typer.Context,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The folder to write into: OUTPUT/NODE/PATH.")
    ],
    inventory: InventoryOption = None,
    facts: Annotated[
        Path | None, typer.Option("--facts", help="Render from a saved survey, without a network.")
    ] = None,
) -> None:
    """Write the files that deploy would put on each node into a folder, keys and all; with stand-ins for
    keys that nobody has made yet, and with --facts for all. Changes no node."""
    from homelab import ui
    from homelab.nodes.local import aside

    household = household_of(ctx, inventory)
    planned = _plan(household, facts)
    decided, errors = planned.plan, planned.errors
    written = 0
    for service in decided.services:
        for file in service.files:
            path = output / service.node / file.path
            try:
                with aside(path, file.mode) as target:
                    target.write(file.content.encode())
            except OSError as e:
                raise HomelabError(f"Cannot write `{path}`", cause=str(e)) from e
            written += 1
    if planned.secrets is None and facts is None:
        ui.say("There are no keys yet: stand-ins are written; the first deploy makes them")
    ui.say(f"{written} files for {len({s.node for s in decided.services})} nodes in {output}")
    _refuse_unplaced(decided, household, errors)
    refuse_unreachable(household, errors)


@app.command(rich_help_panel=DO)
def deploy(
    ctx: typer.Context,
    inventory: InventoryOption = None,
    yes: YesOption = False,
    upgrade: UpgradeOption = False,
    test: Annotated[
        bool, typer.Option("--test", help="Then prove the models, as homelab test does.")
    ] = False,
) -> None:
    """Show the plan, ask, and carry it out."""
    from homelab import pipeline, state, ui
    from homelab.apps import apps
    from homelab.ui import connect as connect_screen

    household = household_of(ctx, inventory)
    cluster = household.inventory.cluster
    with state.lock(cluster):
        planned = _plan(household, None, upgrade=upgrade)
        decided, errors, secrets = planned.plan, planned.errors, planned.secrets
        _show_plan(decided, household)
        _refuse_unplaced(decided, household, errors)
        if decided.todo:
            if secrets is None:
                pipeline.may_make_secrets(household, planned.survey)
            if not yes and not ui.is_terminal():
                raise DeployError(
                    "Cannot ask to confirm the plan without a terminal",
                    hint="Look at it (homelab plan), then: homelab deploy --yes",
                )
            if not yes and not ui.confirm("Carry out this plan?", default=True):
                raise DeployError("Cancelled. Nothing was changed")
            if secrets is None:
                secrets = pipeline.make_secrets(household, planned.survey)
                # The same decision, with keys in its files.
                decided = pipeline.make_plan(household, planned.survey, secrets, planned.options)
            from homelab.ui.progress import Progress, answers, left_as

            todo, again = decided.todo, inventory_option(household)
            progress = Progress([c.place for c in todo], pipeline.expected_times(cluster, todo))
            with _changing(lambda: left_as(progress.state, todo, again), f"homelab status{again}"), progress:
                done = asyncio.run(pipeline.roll_out(household, decided, secrets, progress, progress.asks))
            for _, answer in done.answers:
                if isinstance(answer, HomelabError):
                    ui.error(answer)
            ui.show(answers(done.answers, done.took, ui.width()))
            if done.failures:
                ui.write(done.summary)
                raise typer.Exit(done.exit_code)
        elif decided.leftovers and (yes or (ui.is_terminal() and ui.confirm("Take away what is left over?"))):
            from homelab.ui.progress import Progress

            with _changing(), Progress() as progress:
                _fail(tuple(asyncio.run(pipeline.clear(household, decided, progress))))
    if secrets is None:  # nothing is deployed, and nothing could be
        refuse_unreachable(household, errors)
        return
    entrances = [s for s in decided.services if s.role in ("gateway", "front")]
    address = _address_of(household, entrances[-1]) if entrances else _remembered_address(household)
    key_file = str(state.key_file(cluster)) if secrets else None
    connect_screen.deployed(address, key_file, inventory_option(household))
    for service in (s for s in decided.services if s.role == "app"):
        app = apps()[household.inventory.apps[service.name].module]
        ui.sentence(f"{app.TITLE}  {service.unit.url}   {app.FIRST}")
    if test:
        ui.write()
        if not cli_test.prove(household, survey_of(household)[0], secrets, ()):
            raise typer.Exit(1)
    refuse_unreachable(household, errors)


@app.command(rich_help_panel=DECIDE, short_help="Show what a model takes, and whether it fits.")
def fit(
    ctx: typer.Context,
    source: Annotated[
        str | None,
        typer.Argument(
            help="A repository (Org/Repo, Org/Repo:Q4_K_M), a file or folder here (a config.json alone will "
            "do), or a name of the catalog.",
            autocompletion=_complete_source,
        ),
    ] = None,
    what: Annotated[
        bool,
        typer.Option(
            "--what",
            help="What can this house run? The catalog, on the devices of all nodes (or --gpu, --node).",
        ),
    ] = False,
    history: Annotated[
        bool,
        typer.Option("--history", help="Predicted against real: what was measured after each deploy so far."),
    ] = False,
    engine: Annotated[
        str | None, typer.Option("--engine", help="vllm or llamacpp; default: what reads the source.")
    ] = None,
    gpu: Annotated[
        str | None,
        typer.Option(
            "--gpu",
            help="Its memory as CUDA reports it (24GiB), a name (RTX 4090), or several (2x RTX 3090).",
        ),
    ] = None,
    node: Annotated[
        str | None,
        typer.Option(
            "--node",
            help="A node of the inventory: what is free there now.",
            autocompletion=completed("nodes"),
        ),
    ] = None,
    context: Annotated[
        str | None, typer.Option("--context", "-c", help="Tokens of one request: 8192 or 32k.")
    ] = None,
    speculative: Annotated[
        str | None,
        typer.Option(
            "--speculative", help="Tokens that its prediction layers draft at a time: auto, off, 1-16."
        ),
    ] = None,
    concurrency: Annotated[
        int | None,
        typer.Option(
            "--concurrency", min=1, max=1024, help="Requests at once.", show_default="2, as in the inventory"
        ),
    ] = None,
    quant: Annotated[
        str | None,
        typer.Option(
            "--quant",
            help="The weights: Q4_K_M, Q8_0, bf16, fp8, awq … Default: the largest that fits.",
        ),
    ] = None,
    kv_cache_dtype: Annotated[
        str | None, typer.Option("--kv-cache-dtype", help="vLLM: fp8, fp8_e5m2, int8_per_token_head …")
    ] = None,
    parallel: Annotated[
        int | None,
        typer.Option("--parallel", min=1, max=1024, help="llama.cpp: slots, in place of --concurrency."),
    ] = None,
    ubatch: Annotated[
        int | None, typer.Option("--ubatch", min=1, help="llama.cpp: tokens of a micro-batch.")
    ] = None,
    cache_type_k: Annotated[
        str | None, typer.Option("--cache-type-k", help="llama.cpp: f16, q8_0, q4_0 …")
    ] = None,
    cache_type_v: Annotated[
        str | None, typer.Option("--cache-type-v", help="llama.cpp: the same for values.")
    ] = None,
    flash_attn: Annotated[str | None, typer.Option("--flash-attn", help="llama.cpp: on or off.")] = None,
    n_gpu_layers: Annotated[
        int | None,
        typer.Option("--n-gpu-layers", min=0, help="llama.cpp: layers on the GPU, the output layer first."),
    ] = None,
    n_cpu_moe: Annotated[
        int | None, typer.Option("--n-cpu-moe", min=0, help="llama.cpp: layers whose experts stay in RAM.")
    ] = None,
    mmproj: Annotated[
        str | None,
        typer.Option(
            "--mmproj",
            help="llama.cpp: a vision projector: a file here, or the name of one beside the model.",
        ),
    ] = None,
    outputs: Annotated[
        str | None,
        typer.Option(
            "--outputs",
            help="llama.cpp: `slots`, what a server reserves (default); `all`, llama-fit-params' bound.",
        ),
    ] = None,
    inventory: InventoryOption = None,
    json: JsonOption = False,
) -> None:
    """Show what a model takes, whether it fits, and what would fit instead. Downloads no weights, changes
    nothing."""
    from homelab import fit_command, ui

    question = fit_command.Question(
        inventory=inventory or ctx.obj or Path("inventory.yml"),
        source=source,
        what=what,
        history=history,
        engine=engine,
        gpu=gpu,
        node=node,
        context=context,
        concurrency=concurrency,
        speculative=speculative,
        quant=quant,
        outputs=outputs,
        args={
            "kv-cache-dtype": kv_cache_dtype,
            "parallel": parallel,
            "ubatch-size": ubatch,
            "cache-type-k": cache_type_k,
            "cache-type-v": cache_type_v,
            "flash-attn": flash_attn,
            "n-gpu-layers": n_gpu_layers,
            "n-cpu-moe": n_cpu_moe,
            "mmproj": mmproj,
        },
    )
    answer = fit_command.answer(question)
    if json:
        ui.print_json(fit_command.document(answer))
    else:
        from homelab.ui import fit as screen

        ui.show(screen.lines(answer, ui.width()))
    if fit_command.exit_code(answer):
        raise typer.Exit(fit_command.exit_code(answer))


@app.command(rich_help_panel=DECIDE, short_help="Suggest what this house should run.")
def suggest(
    ctx: typer.Context,
    purposes: Annotated[
        list[str] | None,
        typer.Option(
            "--for",
            help="coding, chat, agents or embedding; may be repeated. Default: coding, chat and embedding.",
        ),
    ] = None,
    node: Annotated[
        str | None,
        typer.Option("--node", help="For this node alone.", autocompletion=completed("nodes")),
    ] = None,
    gpu: Annotated[
        str | None,
        typer.Option(
            "--gpu", help="For a machine that is not there: RTX 4090, 2x RTX 3090, M4 Max 36GB, DGX Spark."
        ),
    ] = None,
    instead: Annotated[
        bool, typer.Option("--instead", help="As if the inventory had no models yet; without: beside them.")
    ] = False,
    write: Annotated[
        bool, typer.Option("--write", help="Add what is suggested to the inventory's models.")
    ] = False,
    inventory: InventoryOption = None,
    json: JsonOption = False,
) -> None:
    """Suggest what this house should run: by published scores, predicted speed, and what fits. Downloads
    nothing, and changes nothing but the inventory with --write."""
    from homelab import suggest_command, ui

    path = inventory or ctx.obj or Path("inventory.yml")
    if write and str(path) == "-":
        raise InventoryError("Standard input cannot be written to", hint="Name the file: -i inventory.yml")
    if write and (gpu or instead):
        raise InventoryError(
            "--write adds to the inventory what fits beside its models on its machines",
            hint="Leave --gpu and --instead out",
        )
    found, errors = suggest_command.run(
        path, purposes=tuple(purposes or ()), node=node, gpu=gpu, instead=instead
    )
    if json:
        ui.print_json(suggest_command.document(found))
    else:
        from homelab.ui import suggest as screen

        ui.show(screen.lines(found, ui.width(), inventory=not write))
    if write and found.picks:
        suggest_command.write(path, found.picks)
        ui.say(f"Wrote {', '.join(p.name for p in found.picks)} into {path}")
    if not json and found.picks and not gpu:
        again = "" if str(path) == "inventory.yml" else f" -i {path}"
        ui.next_steps(f"homelab plan{again}" if write else f"homelab suggest{again} --write")
    if errors and not gpu:
        show_unreachable(household_of(ctx, inventory), dict(errors))
    if not found.picks:
        raise typer.Exit(3)


@app.command(rich_help_panel=USE)
def ask(
    ctx: typer.Context,
    model: Annotated[
        str,
        typer.Argument(help="A model of the inventory.", autocompletion=completed("models", "cloud")),
    ],
    prompt: Annotated[
        str, typer.Argument(help="The question; `-` reads standard input.")
    ] = "Say hello in one short sentence.",
    inventory: InventoryOption = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="The longest answer.")] = 256,
) -> None:
    """Ask a model one question through the gateway. Changes nothing."""
    from homelab import ask as asking
    from homelab import pipeline, state, ui
    from homelab.inventory import did_you_mean

    household = household_of(ctx, inventory)
    known = [*household.inventory.models, *household.inventory.cloud]
    if model not in known:
        raise InventoryError(
            f"No model `{model}` in `{household.path}`{did_you_mean(model, known)}",
            hint=f"There are: {', '.join(known)}",
        )
    secrets = deployed_secrets(household)
    text = sys.stdin.buffer.read().decode(errors="replace") if prompt == "-" else prompt
    kind = household.inventory.models[model].kind if model in household.inventory.models else "chat"
    answer = asyncio.run(
        asking.ask(
            asyncio.run(pipeline.proven_gateway(household)),
            secrets.gateway_key.get_secret_value(),
            model,
            kind,
            text,
            max_tokens,
            ca_file=state.ca_file(household.inventory.cluster),
        )
    )
    ui.write(answer.text)
    first = answer.first_token_seconds
    token = f"first token {first:.2f} s, " if first is not None else ""
    ui.say(f"{model} on {answer.served_by or 'unknown'}, {token}{answer.seconds:.1f} s")


@app.command(rich_help_panel=SEE, short_help="Health of what should run: gateway, models, memory.")
def status(
    ctx: typer.Context,
    inventory: InventoryOption = None,
    json: JsonOption = False,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Go on looking, on a terminal, until q or ^C.")
    ] = False,
) -> None:
    """Health of what should run: gateway, models, memory planned and used. Changes nothing. Exits with 1 when
    the gateway or a model is not healthy; what lies on silent nodes marked `away` does not count."""
    from homelab import documents, pipeline, state, ui
    from homelab import status as health

    if watch and (json or not (sys.stdin.isatty() and sys.stdout.isatty())):
        raise InventoryError(
            "`--watch` is for a terminal, without `--json`",
            hint="From a script, again and again: homelab status --json",
        )
    household = household_of(ctx, inventory)
    survey, errors = survey_of(household)
    secrets = asyncio.run(pipeline.secrets_of(household, survey))
    if watch:
        _watch_status(household, survey, secrets)
        return
    now = asyncio.run(
        health.status(
            household.inventory, survey, secrets, ca_file=state.ca_file(household.inventory.cluster)
        )
    )
    key_file = str(state.key_file(household.inventory.cluster))
    if json:
        ui.print_json(documents.status_document(household.inventory, now, key_file))
    else:
        from homelab.ui import status as screen

        ui.show(screen.lines(now, ui.width()))
        if secrets is not None:
            ui.write(f"key in {key_file}")
        if not all(m.healthy for m in now.models) or not now.gateway.healthy:
            ui.next_steps(f"homelab plan{inventory_option(household)}")
    refuse_unreachable(household, errors)
    if now.unhealthy:
        raise typer.Exit(1)


def _watch_status(household: Household, survey: Survey, secrets: Secrets | None) -> None:
    """Show the status again and again; ^C is how this ends, and no failure."""
    from homelab import state
    from homelab import status as health
    from homelab.ui import status as screen
    from homelab.ui.watching import watching
    from homelab.watch import watch

    async def screens() -> AsyncGenerator[Callable[[int], list[Text]], None]:
        known = {**survey.remembered, **{n: r.facts for n, r in survey.nodes.items() if r.facts}}
        async with contextlib.aclosing(watch(household.inventory, secrets)) as looks:
            async for seen in looks:
                # What a node that does not answer had is known from before.
                before = {n: f for n, f in known.items() if n not in seen.survey.nodes} | {
                    n: known[n] for n, r in seen.survey.nodes.items() if r.facts is None and n in known
                }
                known |= {n: r.facts for n, r in seen.survey.nodes.items() if r.facts}
                whole = seen.survey.model_copy(update={"remembered": {**before, **seen.survey.remembered}})
                now = await health.status(
                    household.inventory,
                    whole,
                    secrets,
                    ca_file=state.ca_file(household.inventory.cluster),
                )
                yield functools.partial(screen.lines, now)

    with contextlib.suppress(KeyboardInterrupt):
        raise typer.Exit(asyncio.run(watching(screens())))


@app.command(rich_help_panel=SEE, short_help="The whole house on one live screen.")
def top(ctx: typer.Context, inventory: InventoryOption = None) -> None:
    """The whole house on one live screen: memory, tokens per second, queues, power; with keys for logs, why
    and restart. It leaves nothing behind on the nodes."""
    from homelab import logs as reading
    from homelab import pipeline
    from homelab.deploy.restart import restart as start_again
    from homelab.ui import top as screen
    from homelab.ui import why as reasons
    from homelab.watch import speeds, watch

    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise HomelabError("`homelab top` needs a terminal", hint="Without one: homelab status --json")
    household = household_of(ctx, inventory)
    watched = household.inventory
    survey, _ = survey_of(household)
    secrets = asyncio.run(pipeline.secrets_of(household, survey))

    async def why(model: str) -> list[Text]:
        plan, _ = await pipeline.plan_now(household, for_reasons=True)
        return reasons.lines(plan, model, shown.size.width - 2)

    def logs(node: str, service: str) -> AsyncGenerator[str, None]:
        return reading.follow(watched, shown.seen.survey if shown.seen else survey, node, service)

    async def restart(node: str, service: str) -> None:
        await start_again(watched, node, service, lambda: pipeline.plan_now(household), lambda _: None)

    shown = screen.Top(watched, watch(watched, secrets), speeds=speeds, why=why, logs=logs, restart=restart)
    raise typer.Exit(asyncio.run(screen.run(shown)))


@app.command(rich_help_panel=SEE)
def logs(
    ctx: typer.Context,
    model: Annotated[
        str,
        typer.Argument(
            help="A model or app of the inventory, `gateway`, or `front`.",
            autocompletion=completed("models", "apps", more=("gateway",), themselves=("front",)),
        ),
    ],
    inventory: InventoryOption = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as new lines come.")] = False,
    tail: Annotated[
        int, typer.Option("--tail", "-n", min=0, help="How many of the last lines of each instance.")
    ] = 100,
    node: NodeOption = None,
    color: Annotated[bool, typer.Option("--color", help="Keep the colours that are in the log.")] = False,
) -> None:
    """Show what a model's engine (or the gateway) says. Changes nothing."""
    from homelab import logs as reading
    from homelab import ui

    household = household_of(ctx, inventory)
    services, _ = _instances(household, model, node)
    line = functools.partial(ui.log_line, colours=color)
    asyncio.run(reading.show(household.inventory, services, line, follow=follow, tail=tail))


@app.command(rich_help_panel=DO, short_help="Start a model's engine (or the gateway) again as it is.")
def restart(
    ctx: typer.Context,
    model: Annotated[
        str,
        typer.Argument(
            help="A model or app of the inventory, `gateway`, or `front`.",
            autocompletion=completed("models", "apps", more=("gateway",), themselves=("front",)),
        ),
    ],
    inventory: InventoryOption = None,
    node: NodeOption = None,
    yes: YesOption = False,
) -> None:
    """Start a model's engine (or the gateway) again as it is, and wait until it is healthy; instances one
    after the other."""
    from homelab import pipeline, ui
    from homelab.deploy.restart import restart as start_again
    from homelab.ui.progress import Progress

    household = household_of(ctx, inventory)
    found, errors = _instances(household, model, node, changing=True)
    # Of another model, a service may have this one's name.
    services = [(n, s) for n, s in found if model in (s.serves if s.role == "engine" else (s.role, s.name))]
    if not services:
        raise DeployError(f"No `{model}` is deployed", hint=f"homelab status{inventory_option(household)}")
    where = ", ".join(dict.fromkeys(n if s.name == model else f"{n} ({s.name})" for n, s in services))
    if not yes:
        if not ui.is_terminal():
            again = f"homelab restart {model}{inventory_option(household)} --yes"
            raise DeployError("Cannot ask to confirm without a terminal", hint=again)
        if not ui.confirm(f"Restart {model} on {where}? It answers nobody until it has loaded again."):
            raise DeployError("Cancelled. Nothing was changed")
    for name, service in services:
        with _changing(), Progress([(name, service.name)]) as progress:
            asyncio.run(
                start_again(
                    household.inventory,
                    name,
                    service.name,
                    lambda: pipeline.plan_now(household),
                    # Its error ends the command, and is shown then.
                    lambda event: progress(replace(event, error=None)),
                )
            )
    ui.write(f"{model} runs again on {where}")
    refuse_unreachable(household, errors)


@app.command(rich_help_panel=DO)
def remove(
    ctx: typer.Context,
    models: Annotated[
        list[str] | None,
        typer.Argument(
            help="Only these models or apps; default: everything of the cluster.",
            autocompletion=completed("models", "apps"),
        ),
    ] = None,
    inventory: InventoryOption = None,
    yes: YesOption = False,
) -> None:
    """Take models, or all of the cluster, off the nodes. Weights and other caches stay."""
    from homelab import state, ui
    from homelab.deploy.remove import chosen
    from homelab.deploy.remove import remove as carry_out
    from homelab.ui.cells import wrapped
    from homelab.ui.plan import left_behind
    from homelab.ui.progress import Progress

    household = household_of(ctx, inventory)
    cluster = household.inventory.cluster
    with state.lock(cluster):
        survey, errors = survey_of(household, changing=True)
        doomed = chosen(household.inventory, survey, models or ())
        for n, s in doomed:
            ui.write(f"- remove  {s.name}  {n}  ({s.runtime}, {s.state})")
        if not doomed:
            ui.write("Nothing to remove")
        elif not yes:
            if not ui.is_terminal():
                raise DeployError("Cannot ask to confirm without a terminal", hint="homelab remove --yes")
            if not ui.confirm("Remove them?"):
                raise DeployError("Cancelled. Nothing was changed")
        clear = [n for n, r in survey.nodes.items() if r.facts is not None and not models]
        with _changing(), Progress([(n, s.name) for n, s in doomed]) as progress:
            outcome = asyncio.run(carry_out(household.inventory, doomed, progress, clear=clear))
        _fail(outcome.failed)
        if not models and not errors:
            state.forget(cluster)
    if models:
        ui.sentence(
            f"Removed. Take {', '.join(models)} out of `{household.path}` too, or the "
            "next deploy brings it back"
        )
    elif not errors:
        ui.sentence(
            f"Nothing of cluster `{cluster}` runs any more on these nodes. Weights and caches stay: "
            "~/.cache/huggingface, ~/.cache/homelab"
        )
        for name, facts in survey.gone.items():
            services = [s.name for s in facts.services if s.cluster == cluster]
            ui.show(wrapped(left_behind(name, services), ui.width(), rest="  "))
    refuse_unreachable(household, errors)


@app.command(rich_help_panel=DO)
def unlock(ctx: typer.Context, inventory: InventoryOption = None) -> None:
    """Take the lock of a deploy that is gone off the nodes. One that is still at work stops where it is."""
    from homelab import ui
    from homelab.deploy.lock import unlock as release

    household = household_of(ctx, inventory)
    survey, errors = survey_of(household)
    nodes = [name for name, report in survey.nodes.items() if report.facts is not None]
    held, silent = asyncio.run(release(household.inventory, nodes))
    for node, who in sorted(held.items()):
        ui.write(f"{node}: unlocked, was held by {who}")
    if not held:
        ui.write("Nothing is locked")
    refuse_unreachable(household, errors | silent)


app.add_typer(cli_keys.app, name="key", rich_help_panel=DO)


def main() -> None:
    """Run the command line; the class of an error fixes the exit code, and no traceback is shown for
    anything a user can cause."""
    # A short life makes little garbage. Looking for it takes 9 % of `discover` (bench/README.md).
    gc.set_threshold(500_000)
    terminal.guard_streams()
    try:
        _check_arguments(sys.argv[1:])
        app()
    except HomelabError as e:
        from homelab import ui

        ui.error(e)
        sys.exit(e.exit_code)
    except (KeyboardInterrupt, SystemExit) as e:
        code = 130 if isinstance(e, KeyboardInterrupt) else e.code
        if code == 130:  # Typer makes ^C an exit of this code, and says nothing
            sys.stderr.write("\nInterrupted\n")
        sys.exit(code)
    except Exception as e:  # a bug of ours: the report goes to a file, the user gets one line
        from homelab import crash

        said = f"homelab has a bug: {type(e).__name__}: {e}\n{crash.write(e)}\n"
        sys.stderr.write(terminal.harmless(said))
        sys.exit(70)
    finally:
        # The end of the process frees everything anyway. Looking through it takes 12 % of `--help`, 18 % of
        # `discover`.
        gc.freeze()


class _Interrupted(HomelabError):
    exit_code = 130


@contextlib.contextmanager
def _changing(left: Callable[[], list[str]] = list, hint: str = "") -> Iterator[None]:
    """What is interrupted here can be gone on with; where nothing is changed there is nothing to say. `left`
    says what becomes of what was under way."""
    try:
        yield
    except KeyboardInterrupt as e:
        said = "Interrupted. Running the same command again goes on from here"
        raise _Interrupted(said, cause="\n".join(left()), hint=hint) from e


def _check_arguments(arguments: list[str]) -> None:
    """Raises InventoryError: what is no text can be neither shown nor sent."""
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError as e:
            shown = os.fsencode(argument).decode(errors="backslashreplace")
            raise InventoryError(
                f"`{shown}` is not UTF-8",
                cause="This machine's file names may be anything; homelab's arguments are text",
                hint="Rename the file, or write the name again in UTF-8",
            ) from e


def _instances(
    household: Household, model: str, node: str | None, *, changing: bool = False
) -> tuple[list[tuple[str, DeployedService]], dict[str, NodeError]]:
    """The services of a model (or of the gateway), each with its node; there is at least one. And the nodes
    that could not be asked."""
    from homelab import logs as reading
    from homelab.inventory import did_you_mean

    survey, errors = survey_of(household, changing=changing)
    services = reading.instances(household.inventory, survey, model, node)
    if not services:
        refuse_unreachable(household, errors)
        known = [*household.inventory.models, *household.inventory.apps, "gateway"]
        where = f" on node `{node}`" if node else ""
        raise DeployError(
            f"No `{model}` is deployed{where}{did_you_mean(model, [k for k in known if k != model])}",
            hint=f"homelab status{inventory_option(household)}",
        )
    return services, errors


@dataclass(frozen=True, slots=True, kw_only=True)
class _Planned:
    """A plan and what it was made of. `secrets` is None where the plan has stand-ins."""

    plan: Plan
    survey: Survey
    errors: dict[str, NodeError]
    secrets: Secrets | None
    options: Options


def _show_plan(decided: Plan, household: Household, *, verbose: bool = False) -> None:
    from homelab import ui
    from homelab.ui import plan as screen

    ui.show(screen.lines(decided, ui.width(), verbose=verbose))
    ui.show(screen.summary(decided, household.inventory, ui.width()))


def _plan(
    household: Household, facts: Path | None, *, upgrade: bool = False, everything: bool = False
) -> _Planned:
    """`everything`: with the headers of models that stay as they are, which only reasons need."""
    from homelab import pipeline
    from homelab.plan import Options

    errors: dict[str, NodeError] = {}
    secrets = None
    are_known = False
    if facts is not None:
        survey = pipeline.read_facts(facts)
        household = pipeline.offline(household)
    else:
        pipeline.check_variables(household)
        survey, errors = survey_of(household, changing=True)
        survey = asyncio.run(pipeline.with_models(household, survey, everything=everything))
        secrets = asyncio.run(pipeline.secrets_of(household, survey))
        # That there are none is known too, where their node could be asked: then new ones come.
        are_known = secrets is not None or survey.nodes[household.inventory.gateway.node].reachable
    options = Options(upgrade=upgrade, keys=are_known)
    decided = pipeline.make_plan(household, survey, secrets or pipeline.placeholder_secrets(), options)
    return _Planned(plan=decided, survey=survey, errors=errors, secrets=secrets, options=options)


def _address_of(household: Household, entrance: Service) -> str:
    """Where clients find what will answer them."""
    front = household.inventory.front or None
    if entrance.unit.tls and front is not None and front.hostnames:
        return f"https://{front.hostnames[0]}:{entrance.unit.port}"
    return entrance.unit.url


def _remembered_address(household: Household) -> str:
    from homelab import endpoints, state
    from homelab.facts import Survey

    survey = state.load_survey(household.inventory.cluster) or Survey()
    return endpoints.gateway_url(household.inventory, survey)


def _refuse_unplaced(decided: Plan, household: Household, errors: dict[str, NodeError]) -> None:
    """What does not fit is an error; what only waits for a silent node is not: that node's own error says
    enough."""
    short = [u for u in decided.layout.unplaced if not u.unreachable]
    if short:
        show_unreachable(household, errors)
        names = ", ".join(dict.fromkeys(u.model for u in short))
        cause = "\n".join(dict.fromkeys(f"{u.model}: {d}" for u in short for d in (u.details or (u.reason,))))
        ways = dict.fromkeys(f"`{u.model}` would fit {u.suggestion}" for u in short if u.suggestion)
        raise DoesNotFit(
            f"No place for {names}",
            cause=cause,
            hint="; ".join(ways)
            or (
                "Give it less `context` or `concurrency`, a smaller variant, or free the "
                "memory that is named above"
                if re.search(r"needs [\d.]+ GiB", cause)
                else "Mend one of these, then: homelab plan"
            ),
        )


def _fail(failed: tuple[HomelabError, ...]) -> None:
    if failed:
        raise typer.Exit(4 if all(isinstance(e, NodeError) for e in failed) else 1)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text)
    except OSError as e:
        raise HomelabError(f"Cannot write `{path}`", cause=str(e)) from e
