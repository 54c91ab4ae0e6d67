"""Asks what the proofs want to know, through the gateway, streamed as agents are."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import httpx

from homelab.ask import trusting
from homelab.errors import DeployError
from homelab.models.recipes import Recipes
from homelab.proofs import Proof, Result, Subject, Verdict, judged, may_be_sampled, proofs
from homelab.proofs.mends import lack, mend
from homelab.proofs.wire import (
    COUNT_PATH,
    PATHS,
    Answer,
    Ask,
    Events,
    Protocol,
    Reader,
    body,
    counted,
    reader,
    refusal,
)

# Of silence, not of an answer: a long prompt on a slow card is read for minutes before its first token.
SILENCE_SECONDS = 300.0
MOST_ANSWER_BYTES = 64 << 20
Watch = Callable[[str, str, Protocol], None]


class Prover:
    """Proves models through the gateway at `url`."""

    def __init__(
        self,
        url: str,
        key: str,
        recipes: Recipes,
        silence_seconds: float = SILENCE_SECONDS,
        ca_file: str | None = None,
    ) -> None:
        self._url, self._key, self._recipes = url, key, recipes
        self._verify = trusting(ca_file)
        self._silence_seconds = silence_seconds

    async def model(
        self,
        subject: Subject,
        watch: Watch | None = None,
        wanted: Sequence[Proof] | None = None,
    ) -> tuple[Result, ...]:
        """All proofs of one model, by each protocol that has them.

        Raises DeployError where the gateway does not answer, or does not know the key."""
        results = []
        for proof in proofs() if wanted is None else wanted:
            for protocol in proof.protocols:
                if watch is not None:
                    watch(subject.name, proof.name, protocol)
                results.append(await self._prove(subject, proof, protocol))
        return tuple(self._with_remedy(subject, r) for r in judged(results))

    def _with_remedy(self, subject: Subject, result: Result) -> Result:
        """What mends it, or why nothing does."""
        if why := lack(subject, result.proof, result.protocol, result.verdict):
            known = replace(result.verdict, outcome="lacks", why=f"{result.verdict.why}: {why}")
            return replace(result, verdict=known)
        return replace(result, mend=mend(subject, result.proof, result.verdict, self._recipes))

    async def _prove(self, subject: Subject, proof: Proof, protocol: Protocol) -> Result:
        """A proof, and where a sample may be why it failed once more, as the model samples by itself."""
        begun = time.monotonic()
        verdict, tries = await self._run(subject, proof, protocol, sampled=False), 1
        if may_be_sampled(verdict):
            again, tries = await self._run(subject, proof, protocol, sampled=True), 2
            if again.outcome == "works":
                verdict = replace(again, why=again.why or "on the second try, sampled")
        return Result(
            model=subject.name,
            proof=proof.name,
            protocol=protocol,
            verdict=verdict,
            seconds=time.monotonic() - begun,
            tries=tries,
        )

    async def _run(self, subject: Subject, proof: Proof, protocol: Protocol, *, sampled: bool) -> Verdict:
        script = proof.script(subject, protocol)
        # Replicas have a cache each: a conversation stays with one of them by this header.
        session = f"homelab-{proof.name}-{protocol}-{time.time_ns()}".replace(" ", "-")
        try:
            ask = next(script)
            while True:
                if sampled:
                    ask = replace(ask, temperature=None)
                ask = script.send(await self._ask(subject, protocol, ask, session))
        except StopIteration as end:
            verdict: Verdict = end.value
            return verdict

    async def _ask(self, subject: Subject, protocol: Protocol, ask: Ask, session: str) -> Answer:
        path = COUNT_PATH if ask.counts else PATHS[protocol]
        headers = {
            "Authorization": f"Bearer {self._key}",
            "Accept-Encoding": "identity",
            "x-litellm-session-id": session,
        }
        if protocol == "messages":
            headers["anthropic-version"] = "2023-06-01"
        # A context that is read at 40 tokens a second.
        silence = max(self._silence_seconds, (subject.context or 0) / 40)
        timeout = httpx.Timeout(silence, connect=5)
        begun = time.monotonic()
        try:
            async with (
                httpx.AsyncClient(timeout=timeout, trust_env=False, verify=self._verify) as client,
                client.stream(
                    "POST", self._url + path, json=body(protocol, subject.name, ask), headers=headers
                ) as response,
            ):
                served_by = response.headers.get("x-litellm-model-id", "")
                kind = response.headers.get("content-type", "")
                if response.status_code != 200 or not kind.startswith("text/event-stream"):
                    text = await _whole(response)
                    return _in_one_piece(self._url, response.status_code, text, ask, served_by)
                return await _streamed(response, protocol, served_by, begun)
        except httpx.ConnectError as e:
            raise DeployError(
                f"The gateway at {self._url} does not answer", cause=str(e), hint="homelab status"
            ) from e
        except httpx.TimeoutException:
            return Answer(status=0, error=f"nothing came for {silence:.0f} s")
        except httpx.HTTPError as e:
            return Answer(status=0, error=f"the connection broke: {e or type(e).__name__}")


async def _streamed(response: httpx.Response, protocol: Protocol, served_by: str, begun: float) -> Answer:
    events, read = Events(), reader(protocol)
    first: float | None = None
    size = 0
    async for part in response.aiter_raw():
        size += len(part)
        if size > MOST_ANSWER_BYTES:
            read.error = f"it said more than {MOST_ANSWER_BYTES >> 20} MiB"
            break
        for data in _fed(events.feed(part), read):
            read.take(data)
        if first is None and read.has_begun:
            first = time.monotonic() - begun
    for data in _fed(events.end(), read):
        read.take(data)
    return replace(read.answer(), served_by=served_by, first_seconds=first)


def _fed(data: Iterable[str], read: Reader) -> Iterable[str]:
    try:
        yield from data
    except ValueError as e:
        read.error = str(e)


def _in_one_piece(url: str, status: int, text: str, ask: Ask, served_by: str) -> Answer:
    words = refusal(text)
    # Its own words (templates/homelab_auth.py); an engine's refusal of the gateway's key is a verdict.
    if status != 200 and "does not know this key" in words:
        raise DeployError(
            f"The gateway at {url} does not know this key",
            cause=f"HTTP {status}: {words}",
            hint="homelab status",
        )
    if status != 200:
        return Answer(status=status, error=words, served_by=served_by)
    if ask.counts:
        return Answer(usage=counted(text), served_by=served_by)
    return Answer(broken=f"a stream was asked for, and this came: {text[:160]}", served_by=served_by)


async def _whole(response: httpx.Response) -> str:
    said = bytearray()
    async for part in response.aiter_raw():
        said += part
        if len(said) > 4 << 20:
            break
    return said.decode(errors="replace")
