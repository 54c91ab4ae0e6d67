"""Who may ask this gateway for what. LiteLLM loads this file beside its configuration (`custom_auth` and
`callbacks`, seen to work so on 1.106.2); it needs nothing but the standard library and LiteLLM.

keys.json holds the hashes of people's keys and what each may do. It is read again whenever it changed, so
that a key that is added or revoked counts with the next request. usage.sqlite counts what each has used."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import os
import re
import sqlite3
import threading
import time
from fnmatch import fnmatchcase

import litellm
from litellm.integrations.custom_logger import CustomLogger
from litellm.proxy._types import LitellmUserRoles, ProxyException, UserAPIKeyAuth

HERE = os.path.dirname(os.path.abspath(__file__))
FOLDER = os.path.join(HERE, os.environ.get("HOMELAB_KEYS", "keys"))
MASTER_KEY = os.environ["LITELLM_MASTER_KEY"]
DAY_SECONDS = 86400
# All that a key of a person opens. LiteLLM's own `llm_api_routes` has more: /model/info, which shows where
# the engines are, and stored responses and files of others.
ROUTES = re.compile(
    r"POST (/v1)?/(chat/completions|completions|embeddings|rerank|responses|messages(/count_tokens)?"
    r"|audio/(speech|transcriptions)|images/generations|moderations)|POST /v2/rerank|GET (/v1)?/models(/.+)?"
    r"|POST /v1beta/models/[^:]+:(generateContent|streamGenerateContent|countTokens)"
)
GEMINI = re.compile(r"/v1beta/models/([^:]+):.+")
METRICS = ("/metrics", "/metrics/")
# To a machine that is off or dropped from the network nobody answers a connection, and LiteLLM 1.106.2 waits
# for one as long as for a prompt to be read. The same that it takes itself where it is told no timeout.
CONNECT_SECONDS = 5.0


def connects_soon(transport):
    """Bounds how long a connection may take to be made, by the timeouts that httpx hands to a transport."""
    send = transport.handle_async_request

    async def handle_async_request(self, request):
        timeouts = dict(request.extensions.get("timeout") or {})
        given = timeouts.get("connect")
        timeouts["connect"] = CONNECT_SECONDS if given is None else min(given, CONNECT_SECONDS)
        request.extensions = {**request.extensions, "timeout": timeouts}
        return await send(self, request)

    if not getattr(send, "bounded", False):  # LiteLLM loads this file twice
        handle_async_request.bounded = True
        transport.handle_async_request = handle_async_request


def tells_who_failed(router):
    """A stream that breaks after the backend's 200 and before its first word goes to another replica, as any
    other failure does. LiteLLM 1.106.2 has forgotten by then which one it was, so it asks the fallbacks of
    the model at once: out of the house, though the twin is well. vLLM says 200 before it reads a prompt."""
    common = router.async_function_with_fallbacks_common_utils

    async def async_function_with_fallbacks_common_utils(self, e, *args, **kwargs):
        given = kwargs.get("kwargs")
        if isinstance(e, MidStreamFallbackError) and isinstance(given, dict):
            for name in ("litellm_metadata", "metadata"):
                info = (given.get(name) or {}).get("model_info") or {}
                if info.get("id") and not getattr(e, "failed_deployment_id", None):
                    e.failed_deployment_id = info["id"]
        return await common(self, e, *args, **kwargs)

    if not getattr(common, "told", False):
        async_function_with_fallbacks_common_utils.told = True
        router.async_function_with_fallbacks_common_utils = async_function_with_fallbacks_common_utils


def lets_go_of_who_failed(check):
    """A conversation whose replica does not answer goes to another one. LiteLLM 1.106.2 takes away who has
    failed only after it has chosen the replica that the conversation is kept with, so nobody is left."""
    filter_deployments = check.async_filter_deployments

    async def async_filter_deployments(self, model, healthy_deployments, *args, request_kwargs=None, **more):
        failed = (request_kwargs or {}).get("_excluded_deployment_ids") or ()
        left = [d for d in healthy_deployments if (d.get("model_info") or {}).get("id") not in failed]
        return await filter_deployments(self, model, left, *args, request_kwargs=request_kwargs, **more)

    if not getattr(filter_deployments, "lets_go", False):
        async_filter_deployments.lets_go = True
        check.async_filter_deployments = async_filter_deployments


try:
    from litellm.exceptions import MidStreamFallbackError
    from litellm.llms.custom_httpx.aiohttp_transport import LiteLLMAiohttpTransport
    from litellm.router_utils.pre_call_checks.deployment_affinity_check import DeploymentAffinityCheck

    connects_soon(LiteLLMAiohttpTransport)
    tells_who_failed(litellm.Router)
    lets_go_of_who_failed(DeploymentAffinityCheck)
except (ImportError, AttributeError) as e:
    print("homelab: this is not the LiteLLM that homelab was tried with: %s" % e, flush=True)


def refused(code, message, headers=None):
    kind = "rate_limit_error" if code == 429 else "auth_error"
    return ProxyException(message=message, type=kind, param="api_key", code=code, headers=headers)


HOUSE_MODELS, APPS, APP_HASHES = [], {}, {}
try:
    with open(os.path.join(HERE, "house.json"), encoding="utf-8") as house:
        HOUSE = json.load(house)
    HOUSE_MODELS = HOUSE["models"]
    for name, app in HOUSE.get("apps", {}).items():
        none = dict.fromkeys(("tokens_per_day", "rpm", "parallel", "expires", "revoked"))
        entry = dict(none, **app, name="app:" + name)
        APPS[entry["id"]] = entry
        key = os.environ[entry["variable"]]
        APP_HASHES[hashlib.sha256(key.encode()).hexdigest()] = (entry, None)
except FileNotFoundError:
    pass


class Keys:
    """keys.json as it is now: the entries by the hash of the key and by their id, apps' too."""

    def __init__(self):
        self.stamp, self.by_hash, self.by_id = None, dict(APP_HASHES), dict(APPS)

    def read(self):
        """Raises OSError and ValueError where it cannot be read: then nobody's key is known."""
        path = os.path.join(FOLDER, "keys.json")
        try:
            now = os.stat(path)
        except FileNotFoundError:
            self.__init__()
            return
        stamp = (now.st_mtime_ns, now.st_size, now.st_ino)
        if stamp == self.stamp:
            return
        with open(path, encoding="utf-8") as file:
            entries = json.load(file)["keys"]
        by_hash, by_id = dict(APP_HASHES), dict(APPS)
        for name, entry in entries.items():
            entry = dict(entry, name=name)
            by_id[entry["id"]] = entry
            for one in entry["hashes"]:
                by_hash[one["sha256"]] = (entry, one["until"])
        self.stamp, self.by_hash, self.by_id = stamp, by_hash, by_id


KEYS = Keys()


async def user_api_key_auth(request, api_key):
    """Who asks, for LiteLLM's own checks of models and limits; raises ProxyException for whom it refuses."""
    api_key = api_key or ""
    if not api_key:
        raise refused(401, "No key was sent. Send one as `Authorization: Bearer KEY`")
    if hmac.compare_digest(api_key.encode(), MASTER_KEY.encode()):
        return UserAPIKeyAuth(
            api_key=api_key, user_id="default_user_id", user_role=LitellmUserRoles.PROXY_ADMIN
        )
    try:
        KEYS.read()
    except (OSError, ValueError, KeyError, TypeError):
        raise refused(503, "The gateway cannot read its list of keys: homelab key list") from None
    found = KEYS.by_hash.get(hashlib.sha256(api_key.encode()).hexdigest())
    if found is None:
        raise refused(403, "This gateway does not know this key. A new one: homelab key add NAME")
    entry, until = found
    name, now = entry["name"], time.time()
    if entry.get("revoked"):
        raise refused(403, "The key of `%s` was revoked" % name)
    if until is not None and until <= now:
        raise refused(403, "This key of `%s` was replaced by a newer one (homelab key rotate)" % name)
    if entry["expires"] is not None and entry["expires"] <= now:
        raise refused(403, "The key of `%s` expired on %s" % (name, _day(entry["expires"])))
    if entry.get("metrics"):
        if request.url.path not in METRICS:
            raise refused(403, "The key of `%s` opens %s only, not %s" % (name, METRICS[0], request.url.path))
        return UserAPIKeyAuth(
            api_key=entry["id"],
            key_alias=name,
            user_id=name,
            user_role=LitellmUserRoles.PROXY_ADMIN_VIEW_ONLY,
            models=["no-default-models"],
            allowed_routes=list(METRICS),
        )
    if not ROUTES.fullmatch("%s %s" % (request.method, request.url.path)):
        raise refused(403, "The key of `%s` opens models only, not %s" % (name, request.url.path))
    models = _models(entry)
    # LiteLLM (1.106.2) looks whether the body's model is allowed, and asks the path's.
    asked = GEMINI.fullmatch(request.url.path)
    if asked and models and not any(fnmatchcase(asked[1], m) for m in models):
        raise refused(403, "The key of `%s` does not open model `%s`" % (name, asked[1]))
    limit = entry["tokens_per_day"]
    if limit is not None:
        used = await asyncio.to_thread(_ledger().tokens_today, entry["id"], now)
        if used >= limit:
            left = int(DAY_SECONDS - now % DAY_SECONDS) + 1
            raise refused(
                429,
                "The key of `%s` has used %d of %d tokens today; more from 00:00 UTC" % (name, used, limit),
                {"retry-after": str(left)},
            )
    return UserAPIKeyAuth(
        api_key=entry["id"],
        key_alias=name,
        user_id=name,
        user_role=LitellmUserRoles.INTERNAL_USER,
        models=models,
        allowed_routes=["llm_api_routes"],
        rpm_limit=entry["rpm"],
        max_parallel_requests=entry["parallel"],
    )


def _models(entry):
    """The names that it may ask for; LiteLLM takes an empty list for all."""
    models = entry["models"]
    if entry["private"]:
        models = [m for m in HOUSE_MODELS if not models or m in models]
        return models or ["no-default-models"]
    return models


def _day(seconds):
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))


def counted(kwargs, answer):
    """The tokens of prompt and answer as LiteLLM's own tokenizer counts them: for a stream in Gemini's form
    (1.106.2) it asks no engine for its figures."""
    try:
        message = answer.choices[0].message
        said = [message.content, getattr(message, "reasoning_content", None)]
        said += [c.function.arguments for c in message.tool_calls or ()]
        return (
            litellm.token_counter(model="", messages=kwargs.get("messages") or []),
            litellm.token_counter(model="", text="".join(part for part in said if part)),
        )
    except Exception as e:  # whatever form an answer has: no request fails for it
        print("homelab: the tokens of an answer are not counted: %s" % e, flush=True)
        return 0, 0


class Ledger(CustomLogger):
    """What each key has used, by day (UTC). A disk that takes nothing stops no answer: it is kept in memory
    until the disk takes it, and limits hold by that."""

    def __init__(self):
        super().__init__()
        self.lock, self.unsaved = threading.Lock(), {}

    async def async_log_success_event(self, kwargs, response_obj, start_time, end_time):
        log = kwargs.get("standard_logging_object") or {}
        key = (log.get("metadata") or {}).get("user_api_key_hash") or ""
        tokens = (log.get("prompt_tokens") or 0, log.get("completion_tokens") or 0)
        if not any(tokens):
            tokens = await asyncio.to_thread(counted, kwargs, response_obj)
        await asyncio.to_thread(self.count, key, *tokens, time.time())

    async def async_filter_deployments(
        self, model, healthy_deployments, messages, request_kwargs=None, parent_otel_span=None
    ):
        """A private key is given nobody outside the house, by whichever fallback: LiteLLM asks this for each
        group that it draws from."""
        kwargs = request_kwargs or {}
        said = [kwargs.get(name) or {} for name in ("metadata", "litellm_metadata")]
        ids = {m.get("user_api_key_hash") or m.get("user_api_key") for m in said if isinstance(m, dict)}
        try:
            KEYS.read()
            private = any(KEYS.by_id[i]["private"] for i in ids if i in KEYS.by_id)
        except (OSError, ValueError, KeyError, TypeError):
            private = True
        if not private:
            return healthy_deployments
        inside = [
            d
            for d in healthy_deployments
            if not str((d.get("model_info") or {}).get("id", "")).startswith("cloud/")
        ]
        if healthy_deployments and not inside:
            raise refused(403, "A private key reaches no model outside the house, and `%s` is one" % model)
        return inside

    def count(self, key, prompt_tokens, completion_tokens, now):
        """Add one request to what its key has used today. LiteLLM's own calls have no key of ours."""
        if not re.fullmatch(r"key-[0-9a-f]{32}", key):
            return
        with self.lock:
            row = self.unsaved.setdefault((key, int(now // DAY_SECONDS)), [0, 0, 0, 0.0])
            for i, more in enumerate((1, prompt_tokens, completion_tokens)):
                row[i] += more
            row[3] = now
            self.save()

    def save(self):
        try:
            with self.database() as database:
                for (key, day), row in self.unsaved.items():
                    database.execute(
                        "INSERT INTO usage VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (key, day) DO UPDATE SET"
                        " requests = requests + excluded.requests,"
                        " prompt_tokens = prompt_tokens + excluded.prompt_tokens,"
                        " completion_tokens = completion_tokens + excluded.completion_tokens,"
                        " last_use = max(last_use, excluded.last_use)",
                        (key, day, *row),
                    )
            self.unsaved.clear()
        except (sqlite3.Error, OSError) as e:
            print("homelab: usage is not saved, and kept in memory: %s" % e, flush=True)

    def tokens_today(self, key, now):
        day = int(now // DAY_SECONDS)
        with self.lock:
            row = self.unsaved.get((key, day), [0, 0, 0, 0.0])
            try:
                with self.database() as database:
                    saved = database.execute(
                        "SELECT prompt_tokens + completion_tokens FROM usage WHERE key = ? AND day = ?",
                        (key, day),
                    ).fetchone()
            except (sqlite3.Error, OSError):
                saved = None
            return (saved[0] if saved else 0) + row[1] + row[2]

    def database(self):
        return _Database(os.path.join(FOLDER, "usage.sqlite"))


class _Database:
    """A connection for one transaction: nothing is open between two, so the file may be taken away."""

    def __init__(self, path):
        self.connection = sqlite3.connect(path, timeout=2)

    def __enter__(self):
        try:
            self.connection.execute(
                "CREATE TABLE IF NOT EXISTS usage (key TEXT, day INTEGER, requests INTEGER,"
                " prompt_tokens INTEGER, completion_tokens INTEGER, last_use REAL, PRIMARY KEY (key, day))"
            )
        except BaseException:
            self.connection.close()
            raise
        return self.connection

    def __exit__(self, kind, *_):
        try:
            if kind is None:
                self.connection.commit()
        finally:
            self.connection.close()


LEDGER = Ledger()


def _ledger():
    """The one that LiteLLM calls: it loads this file once for `custom_auth` and once for `callbacks`."""
    return next((c for c in litellm.callbacks if type(c).__name__ == "Ledger"), LEDGER)
