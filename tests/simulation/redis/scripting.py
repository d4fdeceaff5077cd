"""Scripts, run by the real Lua 5.1; what they see of the server is redis.call and the conversions of replies."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import lupa.lua51

from tests.simulation.redis.replies import NO_SCRIPT, OK, Reply, ReplyError, Status
from tests.simulation.redis.table import Arguments, command, integer, number_text

if TYPE_CHECKING:
    from tests.simulation.redis.server import Server

#: Items that Lua takes as arguments of one call; its stack has room for some 8,000.
MAX_ARGUMENTS = 5000

DIGEST_SIZE = 40

PRELUDE = rb"""
local call, protected_call, text_of, sha1hex = ...
local getinfo, setfenv, loadstring, xpcall, setmetatable = debug.getinfo, setfenv, loadstring, xpcall, setmetatable
local type, tostring, error, rawset, pcall = type, tostring, error, rawset, pcall

local function copy(library, without)
  local copied = {}
  for name, value in pairs(library) do
    if name ~= without then copied[name] = value end
  end
  return copied
end

local function failure(text)
  return { err = text }
end

-- Like Redis, which makes texts of its errors for whoever catches them.
local function caught(done, problem, ...)
  if not done then
    if type(problem) == 'userdata' then problem = text_of(problem) or error(problem) end
    if type(problem) == 'table' and type(problem.err) == 'string' then problem = problem.err end
  end
  return done, problem, ...
end

-- What Redis adds: the "ERR" and where it happened in the script.
local function explain(problem)
  local text
  if type(problem) == 'userdata' then
    text = text_of(problem)
    if not text then return problem end
  elseif type(problem) == 'table' then
    text = problem.err or 'ERR unknown error'
  else
    text = 'ERR ' .. tostring(problem)
  end
  local level, info = 2
  repeat
    info = getinfo(level, 'Sl')
    level = level + 1
  until not info or info.source == '@user_script'
  return { raised = text, line = info and info.currentline or 0 }
end

local library = {
  call = call, pcall = protected_call, sha1hex = sha1hex, log = function() end,
  LOG_DEBUG = 0, LOG_VERBOSE = 1, LOG_NOTICE = 2, LOG_WARNING = 3,
  replicate_commands = function() return true end,
  status_reply = function(text) return { ok = text } end,
  error_reply = function(text)
    if string.sub(text, 1, 1) == '-' then text = string.sub(text, 2) end
    if not string.find(text, ' ', 1, true) then text = 'ERR ' .. text end
    return { err = text }
  end,
}
local environment = {
  redis = library, server = library,
  string = copy(string, 'dump'), table = copy(table), math = copy(copy(math, 'random'), 'randomseed'),
  assert = assert, error = error, getmetatable = getmetatable, ipairs = ipairs, next = next, pairs = pairs,
  pcall = function(...) return caught(pcall(...)) end, rawequal = rawequal, rawget = rawget, rawset = rawset,
  select = select, setmetatable = setmetatable,
  tonumber = tonumber, tostring = tostring, type = type, unpack = unpack, xpcall = xpcall, _VERSION = _VERSION,
}
environment._G = environment
setmetatable(environment, {
  __index = function(_, name)
    error('Script attempted to access nonexistent global variable \'' .. name .. '\'', 2)
  end,
  __newindex = function() error('Attempt to modify a readonly table', 2) end,
})

local function compile(source)
  local compiled, problem = loadstring(source, '@user_script')
  if not compiled then return problem end
  return setfenv(compiled, environment)
end

local function set(keys, arguments)
  rawset(environment, 'KEYS', keys)
  rawset(environment, 'ARGV', arguments)
end

-- One call with everything takes half the time of one for each table.
local function run(script, count, ...)
  if count then
    local keys, arguments = {}, { ... }
    local total = #arguments
    for i = 1, count do keys[i] = arguments[i] end
    for i = count + 1, total do arguments[i - count] = arguments[i] end
    for i = total - count + 1, total do arguments[i] = nil end
    set(keys, arguments)
  end
  local _, reply = xpcall(script, explain)
  return reply
end

return {
  compile = compile, set = set, run = run, failure = failure,
  status = library.status_reply, array = function(...) return { ... } end,
}
"""


class Interpreter:
    """Lua, one for all servers of the process: scripts keep nothing between two calls, and are compiled once."""

    def __init__(self) -> None:
        self._server: Server
        self._compiled: dict[bytes, Any] = {}
        self._lua = lupa.lua51.LuaRuntime(encoding=None, register_eval=False, register_builtins=False)
        load = self._lua.eval(b"function(source, ...) return loadstring(source)(...) end")
        made = load(PRELUDE, self._call, self._protected_call, _text, _digest)
        self._compile, self._run, self._failure = made[b"compile"], made[b"run"], made[b"failure"]
        self._set = made[b"set"]
        self._status, self._array = made[b"status"], made[b"array"]
        self._ok = self._status(bytes(OK))  # the same for all, as no script changes a reply

    def compile(self, source: bytes) -> bytes:
        """The digest of a script. Raises ReplyError."""
        digest = _digest(source)
        if digest not in self._compiled:
            compiled = self._compile(source)
            if type(compiled) is bytes:
                raise ReplyError(b"ERR Error compiling script (new function): %b" % compiled)
            self._compiled[digest] = compiled
        return digest

    def run(self, server: Server, digest: bytes, count: int, words: Arguments) -> Reply:
        self._server = server
        if len(words) < MAX_ARGUMENTS:
            reply = self._run(self._compiled[digest], count, *words)
        else:
            self._set(self._table(words[:count]), self._table(words[count:]))
            reply = self._run(self._compiled[digest], None)
        return reply if type(reply) is bytes else self._from_lua(reply)

    def _call(self, *values: Any) -> Any:
        """redis.call. Raises ReplyError, which lupa hands to Lua."""
        for value in values:
            if type(value) is not bytes:
                values = tuple([value if type(value) is bytes else _word(value) for value in values])
                break
        reply = self._server.call_in_script(values)
        kind = type(reply)
        if kind is bytes or kind is int:
            return reply
        return self._ok if reply is OK else self._to_lua(reply)

    def _protected_call(self, *values: Any) -> Any:
        """redis.pcall."""
        try:
            return self._call(*values)
        except ReplyError as error:
            return self._failure(error.text)

    def _to_lua(self, reply: Reply) -> Any:
        kind = type(reply)
        if kind is bytes or kind is int:
            return reply
        if reply is None:
            return False
        if kind is Status:
            return self._status(bytes(reply))  # type: ignore[arg-type]
        items = [False if item is None else item if type(item) is bytes else self._to_lua(item) for item in reply]  # type: ignore[union-attr]
        return self._table(items)

    def _table(self, items: Any) -> Any:
        return self._array(*items) if len(items) < MAX_ARGUMENTS else self._lua.table_from(items)

    def _from_lua(self, value: Any) -> Reply:
        if value is None or value is False:
            return None
        if value is True:
            return 1
        if isinstance(value, (int, float)):
            return int(value)
        if isinstance(value, bytes):
            return value
        if isinstance(value, BaseException):
            raise value  # a mistake in here, not an error of the script
        if lupa.lua51.lua_type(value) != "table":
            return None
        if (text := value[b"raised"]) is not None:
            raise ReplyError(b"%b script: on @user_script:%d." % (text, value[b"line"]))
        if (text := value[b"err"]) is not None:
            raise ReplyError(text)
        if (text := value[b"ok"]) is not None:
            return Status(text)
        items: list[Reply] = []
        while (item := value[len(items) + 1]) is not None:
            items.append(self._from_lua(item))
        return items


def _text(error: Any) -> bytes | None:
    return error.text if isinstance(error, ReplyError) else None


def _digest(text: bytes) -> bytes:
    return hashlib.sha1(text).hexdigest().encode()


def _word(value: Any) -> bytes:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return number_text(value)
    raise ReplyError(b"ERR Command arguments must be strings or integers")


LUA = Interpreter()


@command("EVAL", -3, no_script=True)
def eval_(server: Server, words: Arguments) -> Reply:
    count = _keys(words)
    digest = LUA.compile(words[1])
    server.scripts.add(digest)
    return server.run_script(digest, count, words[3:])


@command("EVALSHA", -3, no_script=True)
def evalsha(server: Server, words: Arguments) -> Reply:
    digest = words[1].lower()
    count = _keys(words) if len(digest) == DIGEST_SIZE else 0
    if digest not in server.scripts:
        raise ReplyError(NO_SCRIPT)
    return server.run_script(digest, count, words[3:])


def _keys(words: Arguments) -> int:
    count = integer(words[2])
    if count > len(words) - 3:
        raise ReplyError(b"ERR Number of keys can't be greater than number of args")
    if count < 0:
        raise ReplyError(b"ERR Number of keys can't be negative")
    return count


@command("SCRIPT LOAD", 3, no_script=True)
def script_load(server: Server, words: Arguments) -> Reply:
    digest = LUA.compile(words[2])
    server.scripts.add(digest)
    return digest


@command("SCRIPT EXISTS", -3, no_script=True)
def script_exists(server: Server, words: Arguments) -> Reply:
    return [int(digest.lower() in server.scripts) for digest in words[2:]]


@command("SCRIPT FLUSH", -2, no_script=True)
def script_flush(server: Server, words: Arguments) -> Reply:
    if len(words) > 3 or (len(words) == 3 and words[2].upper() not in (b"SYNC", b"ASYNC")):
        raise ReplyError(b"ERR SCRIPT FLUSH only support SYNC|ASYNC option")
    server.scripts.clear()
    return OK
