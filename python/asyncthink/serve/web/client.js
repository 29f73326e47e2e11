/* The server's API: POST /v1/chat/completions with server-sent events. */

/* What a response that is no stream says went wrong, in one line. */
async function complaint(response) {
  const text = await response.text();
  try {
    const { error, detail } = JSON.parse(text);
    return error?.message ?? (typeof detail === "string" ? detail : JSON.stringify(detail ?? error));
  } catch {
    return text.trim().slice(0, 300) || `the server answered ${response.status}`;
  }
}

async function request(path, key, options = {}) {
  const headers = { "content-type": "application/json", ...(key ? { authorization: `Bearer ${key}` } : {}) };
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server cannot be reached.");
  }
  if (!response.ok) throw Object.assign(new Error(await complaint(response)), { status: response.status });
  return response;
}

/* The chunks of an answer, as objects. Throws an Error with the server's words. */
async function* chat(body, key, signal) {
  const response = await request("v1/chat/completions", key, { method: "POST", body: JSON.stringify(body), signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let held = ""; ; ) {
    const { value, done } = await reader.read();
    if (done) throw new Error("The server broke off in the middle of its answer.");
    const lines = (held + value).split(/\r?\n/);
    held = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data:")) continue;
      const data = line.slice(5).trim();
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Error(chunk.error.message ?? String(chunk.error));
      yield chunk;
    }
  }
}
