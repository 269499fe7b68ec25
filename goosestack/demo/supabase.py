"""A Supabase project as a program, for tests: sign-in keys that rotate, access tokens good and bad, tables.

    python -m goosestack.demo.supabase --secret SECRET [--anon-key KEY] [--service-key KEY] [--port 0]

It prints `listening on URL`. What a project serves:

    GET  /auth/v1/.well-known/jwks.json   the public keys
    GET  /auth/v1/user                    whose token it is, with `apikey`; 401 or 403
    GET  /rest/v1/TABLE                   rows: filters, select, order, limit, `vnd.pgrst.object+json`
    POST /rest/v1/TABLE                   one row or many, `on_conflict`, `Prefer: resolution=...,return=...`

What a test tells it, in JSON, each answered with JSON:

    POST   /control/tokens        {"alg", "sub", "claims", "headers", "lifetime_s", "signer"} -> {"access_token"}
                                  alg: ES256 (default), RS256, HS256, none; claims and headers are added, null removes
                                  one; signer: project (default), stranger (keys of nobody, under the same kid),
                                  public (HS256 with the published key's PEM as the secret)
    POST   /control/rotate        {"alg"} -> {"kid"}: a new key signs, those before stay published
    POST   /control/withdraw      {"kid"}: a key is published no more
    POST   /control/sign-out      {"sub"}: the user's tokens stand no more (locally they look good until they expire)
    PUT    /control/tables/TABLE  {"columns": {name: type}, "unique": [[name]], "required": [name],
                                  "references": {name: [value]}, "readable": bool, "rows": [row]}
    GET    /control/tables/TABLE  -> {"rows"}
    POST   /control/faults        {"path", "status", "body", "stall_s", "drop", "done", "times"}: what begins with
                                  `path` fails (`times` times, default 1; 0: until cleared): after `stall_s` seconds, by
                                  a `status` (default 500; null: it is only late) with a `body` of JSON, as text, or by
                                  a dropped connection; `done`: after the work was done
    DELETE /control/faults        all is well again
    GET    /control/requests      -> {"requests": [{"method", "path", "query", "headers", "body", "status"}]}
    DELETE /control/requests      forget them

`apikey` is asked for as the platform does: missing or wrong is 401; keys of the new kind (`sb_...`) fail as a Bearer,
and a secret one in a browser.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import signal
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import jwt
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from goosestack.demo.postgrest import Answer, Failure, Table

Json = dict[str, Any]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
MOST_BYTES = 64 * 1024 * 1024


@dataclass
class Key:
    """A key pair of the project, and what a stranger would sign with in its place."""

    kid: str
    alg: str
    private: Any
    strangers: Any
    published: bool = True

    @classmethod
    def make(cls, alg: str) -> Key:
        return cls(str(uuid.uuid4()), alg, _private(alg), _private(alg))

    def public(self) -> Json:
        """As a JWK."""
        algorithm = jwt.get_algorithm_by_name(self.alg)
        shown = algorithm.to_jwk(self.private.public_key(), as_dict=True)
        return {**shown, "kid": self.kid, "alg": self.alg, "use": "sig", "key_ops": ["verify"], "ext": True}

    def pem(self) -> bytes:
        """As a text, which anybody can have."""
        pem: bytes = self.private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        return pem


def _private(alg: str) -> PrivateKeyTypes:
    return ec.generate_private_key(ec.SECP256R1()) if alg == "ES256" else rsa.generate_private_key(65537, 2048)


@dataclass
class Fault:
    """What goes wrong with requests whose path begins so."""

    path: str
    status: int | None = 500
    body: str = '{"code": null, "message": "a fault was ordered"}'
    stall_s: float = 0.0
    drop: bool = False
    done: bool = False
    times: int = 1


@dataclass
class Project:
    """All that the program knows."""

    secret: str
    anon_key: str
    service_key: str
    url: str = ""
    keys: list[Key] = field(default_factory=lambda: [Key.make("ES256"), Key.make("RS256")])
    signed_out: set[str] = field(default_factory=set)
    tables: dict[str, Table] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    requests: list[Json] = field(default_factory=list)

    # --- tokens ---

    def token(self, order: Json) -> str:
        """A token as a test orders it: see the module."""
        alg, now = order.get("alg", "ES256"), int(time.time())
        claims: Json = {
            "iss": f"{self.url}/auth/v1",
            "aud": "authenticated",
            "sub": order.get("sub", str(uuid.uuid4())),
            "role": "authenticated",
            "iat": now,
            "exp": now + order.get("lifetime_s", 3600),
            "aal": "aal1",
            "session_id": str(uuid.uuid4()),
            "email": "",
            "phone": "",
            "is_anonymous": False,
            "app_metadata": {"provider": "email"},
            "user_metadata": {},
        }
        claims = _changed(claims, order.get("claims", {}))
        headers: Json = {"alg": alg, "typ": "JWT"}
        key = next((key for key in reversed(self.keys) if key.alg == alg), self.keys[0])
        if alg != "HS256" or order.get("signer") == "public":
            headers["kid"] = key.kid
        headers = _changed(headers, order.get("headers", {}))
        signed = f"{_segment(headers)}.{_segment(claims)}"
        return f"{signed}.{_encoded(self._sign(alg, key, order.get('signer', 'project'), signed.encode()))}"

    def _sign(self, alg: str, key: Key, signer: str, data: bytes) -> bytes:
        if alg == "none":
            return b""
        if alg == "HS256":
            secrets = {"project": self.secret.encode(), "stranger": b"nobody's secret, " * 3, "public": key.pem()}
            return jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256).sign(data, secrets[signer])
        return jwt.get_algorithm_by_name(alg).sign(data, key.strangers if signer == "stranger" else key.private)

    def user(self, token: str) -> Json:
        """Whose token this is. Raises jwt.PyJWTError, or KeyError where it stands no more."""
        head = jwt.get_unverified_header(token)
        key = next((key for key in self.keys if key.kid == head.get("kid") and key.published), None)
        proof = self.secret if key is None else key.private.public_key()
        claims = jwt.decode(token, proof, algorithms=["HS256" if key is None else key.alg], audience="authenticated")
        if claims["sub"] in self.signed_out:
            raise KeyError(claims["sub"])
        names = ("aud", "role", "email", "phone", "is_anonymous", "app_metadata", "user_metadata")
        return {"id": claims["sub"], **{name: claims.get(name) for name in names}}

    # --- what can go wrong ---

    def fault(self, path: str) -> Fault | None:
        """What goes wrong with this request, if anything."""
        found = next((fault for fault in self.faults if path.startswith(fault.path)), None)
        if found is not None and found.times == 1:
            self.faults.remove(found)
        elif found is not None and found.times:
            found.times -= 1
        return found


def _changed(values: Json, changes: Json) -> Json:
    return {name: value for name, value in {**values, **changes}.items() if value is not None}


def _segment(value: Json) -> str:
    return _encoded(json.dumps(value, separators=(",", ":")).encode())


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


# --- what a project serves ------------------------------------------------------------------------------------


class Front:
    """The project's endpoints."""

    def __init__(self, project: Project) -> None:
        self._project = project

    @web.middleware
    async def witness(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Write down what is asked, and let fail what is to fail."""
        if request.path.startswith("/control/"):
            return await handler(request)
        seen: Json = {
            "method": request.method,
            "path": request.path,
            "query": request.query_string,
            "headers": {name.lower(): value for name, value in request.headers.items()},
            "body": (await request.read()).decode("utf-8", "replace"),
            "status": None,
        }
        self._project.requests.append(seen)
        fault = self._project.fault(request.path)
        answer = None
        if fault is None or fault.done:
            answer = await handler(request)
        if fault is not None:
            await asyncio.sleep(fault.stall_s)
            if fault.drop:
                assert request.transport is not None
                request.transport.abort()
                return web.Response()
            if fault.status is not None:
                answer = web.json_response(text=fault.body, status=fault.status)
        answer = await handler(request) if answer is None else answer
        seen["status"] = answer.status
        return answer

    async def jwks(self, request: web.Request) -> web.StreamResponse:
        keys = [key.public() for key in self._project.keys if key.published]
        return web.json_response({"keys": keys}, headers={"cache-control": "public, max-age=600"})

    async def user(self, request: web.Request) -> web.StreamResponse:
        refusal = self._refuse_key(request, bearer_is_user=True)
        if refusal is not None:
            return refusal
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        try:
            return web.json_response(self._project.user(token))
        except KeyError:
            code, message = "session_not_found", "the user has signed out"
        except jwt.PyJWTError as error:
            code, message = "bad_jwt", f"invalid JWT: {error}"
        return web.json_response({"code": 403, "error_code": code, "msg": message}, status=403)

    async def rows(self, request: web.Request) -> web.StreamResponse:
        refusal = self._refuse_key(request)
        if refusal is not None:
            return refusal
        service, name = request.headers["apikey"] == self._project.service_key, request.match_info["table"]
        try:
            answer = self._serve(request, name, await request.read(), service)
        except Failure as failure:
            return web.json_response(failure.body, status=failure.status)
        if answer.body is None:
            return web.Response(status=answer.status, headers=answer.headers)
        return web.json_response(answer.body, status=answer.status, headers=answer.headers)

    def _serve(self, request: web.Request, name: str, body: bytes, service: bool) -> Answer:
        table = self._project.tables.get(name)
        if table is None:
            raise Failure(404, "PGRST205", f"Could not find the table 'public.{name}' in the schema cache")
        if request.method == "GET":
            return table.read(list(request.query.items()), request.headers.get("accept", ""), service)
        return table.insert(body, request.query, request.headers.get("prefer", ""), service)

    def _refuse_key(self, request: web.Request, *, bearer_is_user: bool = False) -> web.Response | None:
        """The platform's own check of `apikey`, before anything else."""
        key, bearer = request.headers.get("apikey"), request.headers.get("authorization")
        message = None
        if key is None:
            message = "No API key found in request"
        elif key not in (self._project.anon_key, self._project.service_key):
            message = "Invalid API key"
        elif key.startswith("sb_secret_") and "Mozilla" in request.headers.get("user-agent", ""):
            message = "Forbidden use of secret API key in browser"
        elif bearer is not None and bearer.startswith("Bearer sb_"):
            message = "Expected 3 parts in JWT; got 1"
        elif bearer is None and not key.startswith("sb_") and not bearer_is_user:
            message = "No Authorization header, which a legacy key needs as well"
        return None if message is None else web.json_response({"message": message}, status=401)


# --- what a test tells it -------------------------------------------------------------------------------------


class Control:
    """The test's endpoints: see the module."""

    def __init__(self, project: Project) -> None:
        self._project = project

    async def token(self, request: web.Request) -> web.StreamResponse:
        return web.json_response({"access_token": self._project.token(await request.json())})

    async def rotate(self, request: web.Request) -> web.StreamResponse:
        key = Key.make((await request.json()).get("alg", "ES256"))
        self._project.keys.append(key)
        return web.json_response({"kid": key.kid})

    async def withdraw(self, request: web.Request) -> web.StreamResponse:
        kid = (await request.json())["kid"]
        for key in self._project.keys:
            key.published = key.published and key.kid != kid
        return web.json_response({"published": [key.kid for key in self._project.keys if key.published]})

    async def sign_out(self, request: web.Request) -> web.StreamResponse:
        self._project.signed_out.add((await request.json())["sub"])
        return web.json_response({})

    async def make_table(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["table"]
        self._project.tables[name] = Table(name, **await request.json())
        return web.json_response({})

    async def table(self, request: web.Request) -> web.StreamResponse:
        return web.json_response({"rows": self._project.tables[request.match_info["table"]].rows})

    async def fail(self, request: web.Request) -> web.StreamResponse:
        self._project.faults.append(Fault(**await request.json()))
        return web.json_response({})

    async def heal(self, request: web.Request) -> web.StreamResponse:
        self._project.faults.clear()
        return web.json_response({})

    async def requests(self, request: web.Request) -> web.StreamResponse:
        return web.json_response({"requests": self._project.requests})

    async def forget(self, request: web.Request) -> web.StreamResponse:
        self._project.requests.clear()
        return web.json_response({})


def make_app(project: Project) -> web.Application:
    """The program's routes."""
    front, control = Front(project), Control(project)
    app = web.Application(client_max_size=MOST_BYTES, middlewares=[front.witness])
    app.add_routes(
        [
            web.get("/auth/v1/.well-known/jwks.json", front.jwks),
            web.get("/auth/v1/user", front.user),
            web.get("/rest/v1/{table}", front.rows),
            web.post("/rest/v1/{table}", front.rows),
            web.post("/control/tokens", control.token),
            web.post("/control/rotate", control.rotate),
            web.post("/control/withdraw", control.withdraw),
            web.post("/control/sign-out", control.sign_out),
            web.put("/control/tables/{table}", control.make_table),
            web.get("/control/tables/{table}", control.table),
            web.post("/control/faults", control.fail),
            web.delete("/control/faults", control.heal),
            web.get("/control/requests", control.requests),
            web.delete("/control/requests", control.forget),
        ]
    )
    return app


async def serve(project: Project, host: str, port: int) -> None:
    """Serve until SIGTERM."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    runner = web.AppRunner(make_app(project), access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, host, port).start()
    project.url = f"http://{host}:{runner.addresses[0][1]}"
    print(f"listening on {project.url}", flush=True)
    await stop.wait()
    await runner.cleanup()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m goosestack.demo.supabase")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes any free port")
    parser.add_argument("--secret", required=True, help="of the tokens by HS256, as the project's legacy keys are")
    parser.add_argument("--anon-key", default="sb_publishable_demo")
    parser.add_argument("--service-key", default="sb_secret_demo")
    options = parser.parse_args()
    asyncio.run(serve(Project(options.secret, options.anon_key, options.service_key), options.host, options.port))


if __name__ == "__main__":
    main()
