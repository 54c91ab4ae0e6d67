"""What mends a proof that failed, where that is known: a parser, a template, a flag, another version. Pure.

Sources: vllm-project/recipes for parsers and least versions, vLLM's and llama.cpp's own messages."""

from __future__ import annotations

from homelab.models.recipes import Recipes, too_old
from homelab.proofs import Subject, Verdict


def lack(subject: Subject, proof: str, protocol: str, verdict: Verdict) -> str:
    """Why nothing mends it: what the engine or the gateway does not have. Empty where that is not known."""
    if verdict.outcome != "broken":
        return ""
    if verdict.fault == "schema-ignored" and subject.engine == "llamacpp" and protocol != "chat":
        return "llama.cpp reads no output format here, only in chat completions (b11549)"
    if verdict.fault == "count":
        return "LiteLLM estimates with a tokenizer of its own, and asks no engine (1.106.2)"
    asks = verdict.fault == "choice-ignored" or (proof == "tool required" and verdict.fault == "refused")
    if asks and "gpt-oss" in subject.source.lower():
        return "gpt-oss takes `tool_choice: auto` only (vllm-project/recipes)"
    return ""


def mend(subject: Subject, proof: str, verdict: Verdict, recipes: Recipes) -> str:
    """What to change in the inventory, as one sentence; empty where it is not known."""
    if verdict.outcome not in ("broken", "unknown"):
        return ""
    recipe = recipes.find(subject.source) if subject.source else None
    tool_parser = recipe.tool_parser if recipe else None
    is_vllm, is_llama = subject.engine == "vllm", subject.engine == "llamacpp"
    args = dict(subject.args or {})
    is_drafting = "speculative-config" in args or "speculative" in args
    said = verdict.why.lower()
    if verdict.fault == "silent":
        return f"homelab logs {subject.name}; homelab logs gateway"
    if is_vllm and "--enable-auto-tool-choice" in said:
        return _parser(subject, tool_parser)
    if is_llama and "--jinja" in said:
        return "`args: {jinja: true}`: without its template llama.cpp takes no tools"
    if is_llama and "jinja" in said and "template" in said:
        return (
            "a newer chat template: download the GGUF again, or `args: {chat-template-file: FILE}` "
            "(older ones know neither the developer role nor content as a list)"
        )
    if verdict.fault in ("call-as-text", "empty-arguments", "bad-arguments", "text-arguments"):
        if is_vllm:
            if recipe and (old := too_old(recipe, subject.image)):
                return old
            if is_drafting:
                return "without `speculative`: drafted tokens are known to damage calls"
            return _parser(subject, tool_parser)
        if is_llama:
            return (
                "a newer chat template: download the GGUF again, or `args: {chat-template-file: FILE}`; "
                "llama.cpp reads a call by the format of its template"
            )
    if verdict.fault == "thoughts-as-text" or (
        verdict.fault == "no-thoughts" and verdict.outcome == "broken"
    ):
        if is_vllm:
            name = recipe.reasoning_parser if recipe else None
            if name:
                return f"`args: {{reasoning-parser: {name}}}` (vllm-project/recipes)"
            return "`args: {reasoning-parser: NAME}`, the one of this model (docs.vllm.ai, reasoning outputs)"
        if is_llama:
            return "`args: {reasoning-format: deepseek}`"
    if verdict.fault == "tools-unread":
        if is_llama:
            return (
                "a model whose template knows tools, or `args: {chat-template-file: FILE}` with one that does"
            )
        return "a model whose chat template knows tools, or `args: {chat-template: FILE}` with one that does"
    if verdict.fault == "choice-ignored" and is_vllm and is_drafting:
        return "without `speculative`: drafted tokens lose required calls in streams"
    if verdict.fault == "cache-untold" and is_vllm:
        return "`args: {enable-prompt-tokens-details: true}`: vLLM tells of cached tokens then"
    if verdict.fault == "not-cached" and is_vllm:
        if args.get("enable-prefix-caching") is False or args.get("no-enable-prefix-caching"):
            return "without `no-enable-prefix-caching`"
        return "`args: {enable-prefix-caching: true}`, unless the model is a hybrid that drafts"
    if verdict.fault == "not-cached" and is_llama:
        return "more `concurrency`: another conversation may have taken the slot"
    if proof == "near the context" and verdict.fault in ("refused", "silent"):
        return "less `context`, or `long_prompt: true`, so that a deploy tries it before it says healthy"
    return ""


def _parser(subject: Subject, name: str | None) -> str:
    if name:
        return f"`args: {{enable-auto-tool-choice: true, tool-call-parser: {name}}}` (vllm-project/recipes)"
    return (
        "`args: {enable-auto-tool-choice: true, tool-call-parser: NAME}`, the one of this model "
        "(docs.vllm.ai, tool calling)"
    )
