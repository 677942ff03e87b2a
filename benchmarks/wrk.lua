-- Posts a chat request again and again: the same one, or with UNIQUE=1 a new one each time.
-- Prints one JSON line with rates, errors and latencies in milliseconds.
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.headers["Authorization"] = "Bearer " .. (os.getenv("KEY") or "none")

local model = os.getenv("MODEL")
local tokens = os.getenv("MAX_TOKENS") or "16"
local seed = os.getenv("SEED") or "0"
local unique = os.getenv("UNIQUE") == "1"
local path = os.getenv("ROUTE")
local count = 0
local threads = {}

local function body(number)
  return string.format(
    '{"model":"%s","max_tokens":%s,"temperature":0,"messages":[{"role":"user","content":"%s.%d Which module of the standard library copies a file with its permission bits?"}]}',
    model, tokens, seed, number)
end

local fixed = nil

function setup(thread)
  table.insert(threads, thread)
end

function init(args)
  bad = 0
  fixed = wrk.format("POST", path, wrk.headers, body(0))
end

function request()
  if not unique then return fixed end
  count = count + 1
  return wrk.format("POST", path, wrk.headers, body(count))
end

function response(status, headers, text)
  if status ~= 200 then
    bad = bad + 1
    if bad == 1 then io.stderr:write(status .. " " .. text:sub(1, 300) .. "\n") end
  end
end

function done(summary, latency, requests)
  local wrong = 0
  for _, thread in ipairs(threads) do wrong = wrong + thread:get("bad") end
  local lost = summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout
  io.write(string.format(
    '{"requests": %d, "seconds": %.6f, "bad": %d, "lost": %d, "p50_ms": %.4f, "p95_ms": %.4f, "p99_ms": %.4f}\n',
    summary.requests, summary.duration / 1e6, wrong, lost,
    latency:percentile(50) / 1e3, latency:percentile(95) / 1e3, latency:percentile(99) / 1e3))
end
