"""The JSON that scripts rely on: keys are only ever added. Documented in docs/json.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from homelab import speed
from homelab.clients import Access, Client, spelled, trusting
from homelab.facts import SCHEMA_VERSION, Measurement, Survey
from homelab.inventory import Inventory
from homelab.measured import error
from homelab.plan import Plan
from homelab.program import image_of
from homelab.proofs import Result, Subject, is_well

if TYPE_CHECKING:  # its HTTP client would cost every verb 0.2 s
    from homelab.status import Status


def discover_document(inventory: Inventory, survey: Survey) -> dict[str, Any]:
    """`homelab discover --json`."""
    nodes = {}
    for name, report in survey.nodes.items():
        document = report.model_dump(mode="json")
        if document["facts"]:
            for weights in document["facts"][
                "weights"
            ]:  # headers are large and for planning only; `--save` has them
                weights.pop("header", None)
        nodes[name] = {**document, "away": inventory.nodes[name].away}
    return {"schema_version": SCHEMA_VERSION, "cluster": inventory.cluster, "nodes": nodes}


def plan_document(plan: Plan) -> dict[str, Any]:
    """`homelab plan --json`."""
    return {
        "schema_version": SCHEMA_VERSION,
        "placements": [
            {
                "model": p.model,
                "node": p.node,
                "service": p.service,
                "engine": p.engine,
                "runtime": p.runtime,
                "image": image_of(p.program),
                "source": p.source,
                "quantization": p.quantization,
                "gpus": list(p.gpus),
                "address": p.address,
                "port": p.port,
                "context": p.request.context,
                "concurrency": p.request.concurrency,
                "gpu_memory_utilization": p.gpu_memory_utilization,
                "kv_cache_memory_bytes": p.footprint.kv_cache_bytes,
                "bytes": p.bytes,
                "terms": [
                    {"name": t.name, "bytes": t.bytes, "grade": t.grade, "where": t.where}
                    for t in p.footprint.terms
                ],
                "speed": speed.document((plan.speeds or {}).get((p.node, p.service))),
                "reason": p.reason,
                "summary": p.summary,
                "elsewhere": list(p.elsewhere),
            }
            for p in plan.layout
        ],
        "unplaced": [
            {"model": u.model, "reason": u.reason, "details": list(u.details), "suggestion": u.suggestion}
            for u in plan.layout.unplaced
        ],
        "gap": plan.layout.gap,
        "leftovers": [
            {
                "node": left.node,
                "kind": left.what.kind,
                "paths": list(left.what.paths),
                "bytes": left.what.bytes,
            }
            for left in plan.leftovers
        ],
        "gone": {node: list(services) for node, services in plan.gone.items()},
        "changes": [
            {
                "action": c.action,
                "node": c.node,
                "service": c.service,
                "reason": c.reason,
                **({"blocked": c.blocked} if c.blocked else {}),
                **({"newer": c.newer} if c.newer else {}),
            }
            for c in plan.changes
        ],
    }


def why_document(plan: Plan, model: str) -> dict[str, Any]:
    """`homelab why --json`."""
    explains = plan.layout.explains
    mine = [p for p in plan.layout if p.model == model]
    missing = any(u.model == model for u in plan.layout.unplaced) and model != "gateway"
    return {
        "schema_version": SCHEMA_VERSION,
        "model": model,
        "placements": [
            {
                "node": p.node,
                "service": p.service,
                **asdict(explains.because(p)),
                "speed": speed.document((plan.speeds or {}).get((p.node, p.service))),
            }
            for p in mine
            if explains
        ],
        "unplaced": [asdict(explains.missing(model))] if explains and missing else [],
    }


def history_document(measured: Sequence[Measurement]) -> dict[str, Any]:
    """`homelab fit --history --json`."""
    return {
        "schema_version": SCHEMA_VERSION,
        "measurements": [{**m.model_dump(mode="json"), "error": error(m)} for m in measured],
    }


def status_document(inventory: Inventory, status: Status, key_file: str) -> dict[str, Any]:
    """`homelab status --json`."""
    return {
        "schema_version": SCHEMA_VERSION,
        "cluster": inventory.cluster,
        "gateway": {
            "node": status.gateway.node,
            "url": status.gateway.url,
            "state": status.gateway.state,
            "healthy": status.gateway.healthy,
            "key_file": key_file,
        },
        "apps": [asdict(app) for app in status.apps],
        "models": [
            {
                "name": m.name,
                "kind": m.kind,
                "healthy": m.healthy,
                "context": m.context,
                "placements": [
                    {
                        "node": i.node,
                        "service": i.service,
                        "engine": i.engine,
                        "state": i.state,
                        "detail": i.detail,
                        "url": i.url,
                        "context": i.context,
                        "planned_bytes": i.planned_bytes,
                        "used_bytes": i.used_bytes,
                    }
                    for i in m.instances
                ],
            }
            for m in status.models
        ],
        "nodes": [
            {
                "name": name,
                "reachable": report.reachable,
                "away": inventory.nodes[name].away,
                "error": report.error.model_dump() if report.error else None,
                "memory_available_bytes": report.facts.memory_available_bytes if report.facts else None,
                "gpus": [
                    g.model_dump(
                        mode="json", include={"uuid", "name", "memory_total_bytes", "memory_free_bytes"}
                    )
                    for g in report.facts.gpus
                ]
                if report.facts
                else [],
                "problems": [p.model_dump() for p in report.facts.problems] if report.facts else [],
            }
            for name, report in sorted(status.nodes.items())
        ],
    }


def connect_document(access: Access, clients: Mapping[str, tuple[Client, str | None]]) -> dict[str, Any]:
    """`homelab connect --json`: each client with where its program is."""
    described = {}
    for name, (client, where) in clients.items():
        setup = trusting(client, access)
        described[spelled(name)] = {
            "title": client.TITLE,
            "path": where,
            "install": client.INSTALL,
            "files": [f.path for f in setup.files],
            "can_launch": setup.launch is not None,
            "warnings": list(setup.warnings),
        }
    return {
        "schema_version": SCHEMA_VERSION,
        "url": access.url,
        "key_file": access.key_file,
        "model": access.model.name,
        "small_model": access.small.name if access.small else None,
        "models": [
            {
                "name": m.name,
                "kind": m.kind,
                "context": m.context,
                "max_output_tokens": m.max_output_tokens,
                "cloud": m.cloud,
            }
            for m in access.models
        ],
        "clients": described,
    }


def proofs_document(proven: Sequence[tuple[Subject, Sequence[Result]]]) -> dict[str, Any]:
    """`homelab test --json`."""
    return {
        "schema_version": SCHEMA_VERSION,
        "models": [
            {
                "model": subject.name,
                "engine": subject.engine or None,
                "context": subject.context,
                "works": is_well(results),
                "results": [
                    {
                        "proof": r.proof,
                        "protocol": r.protocol,
                        "outcome": r.verdict.outcome,
                        "fault": r.verdict.fault or None,
                        "why": r.verdict.why or None,
                        "mend": r.mend or None,
                        "tries": r.tries,
                        "seconds": round(r.seconds, 2),
                    }
                    for r in results
                ],
            }
            for subject, results in proven
        ],
    }
