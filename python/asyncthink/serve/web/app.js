/* The conversation: questions, settings, saved episodes. */

const form = $("ask"), question = $("question");
const turns = [];
let running = null; // the AbortController of the turn that is streamed
let model = null;

const value = (name) => form.elements[name].value.trim();
const number = (name) => (value(name) === "" ? undefined : Number(value(name)));
const chosen = (values) => Object.fromEntries(Object.entries(values).filter(([, given]) => given !== undefined && given !== ""));

function note(text = "") {
  setText($("note"), text);
  $("note").hidden = !text;
}

function messages(asked) {
  const told = value("system") ? [{ role: "system", content: value("system") }] : [];
  for (const turn of value("earlier") ? turns : [])
    if (turn.asked !== undefined && turn.answer)
      told.push({ role: "user", content: turn.asked }, { role: "assistant", content: turn.answer });
  return [...told, { role: "user", content: asked }];
}

function body(asked) {
  const agents = { mode: value("mode"), pool: number("pool"), context: value("context"), join: value("join"), guide: value("guide"), depth: number("depth") };
  const drawing = { temperature: number("temperature"), max_tokens: number("max_tokens"), seed: number("seed") };
  return {
    model: model ?? "default", messages: messages(asked), stream: true, stream_options: { include_usage: true },
    ...chosen(drawing), asyncthink: { ...chosen(agents), record: true },
  };
}

function append(turn) {
  peek.hide();
  for (const earlier of turns) earlier.work.open = false;
  turns.push(turn);
  $("turns").append(turn.element);
  $("welcome").hidden = true;
  $("new").hidden = false;
  turn.element.scrollIntoView({ block: "start" });
}

/* One chunk of the stream: text or an event of an agent, text of the answer, at the end the record. */
function take(turn, chunk, outcome) {
  if (chunk.asyncthink?.record) outcome.record = chunk.asyncthink.record;
  const delta = chunk.choices?.[0]?.delta;
  if (!delta) return;
  const { agent = 0, event, step = turn.episode.step + 1, sampled = true } = delta.asyncthink ?? {};
  const forced = !sampled; // a stream has no prompts: what is inserted is a return, a tool's result, or a guide's text
  if (event) turn.add({ agent, step, event });
  const thought = delta.reasoning_content ?? "";
  if (thought) turn.add({ agent, step, text: thought, sampled, forced });
  if (delta.content && !event) turn.add({ agent, step, text: delta.content, sampled, answer: true });
  if (delta.content) turn.say(delta.content);
}

async function ask(asked) {
  const request = body(asked); // of the turns before this one
  const turn = new Turn(asked, value("mode") || "asyncthink");
  turn.asked = asked;
  append(turn);
  note();
  running = new AbortController();
  state();
  const outcome = {};
  try {
    for await (const chunk of chat(request, value("key"), running.signal)) take(turn, chunk, outcome);
    if (outcome.record) outcome.answer = outcome.record.answer ?? (turn.said || null);
  } catch (error) {
    if (error.name === "AbortError") outcome.stopped = true;
    else outcome.failed = error.message;
    if (!turn.items.length && outcome.failed) question.value ||= asked; // to be asked again
  }
  running = null;
  turn.finish(outcome);
  if (turn.items.length) new Player(turn);
  state();
}

function state() {
  const focused = document.activeElement === $("go") || document.activeElement === $("stop");
  $("stop").hidden = !running;
  $("go").hidden = Boolean(running);
  $("new").disabled = Boolean(running);
  if (focused) (running ? $("stop") : question).focus();
  grow();
}

function grow() {
  question.style.height = "auto";
  question.style.height = `${Math.min(question.scrollHeight, innerHeight * 0.3)}px`;
  document.documentElement.style.setProperty("--dock", `${document.querySelector(".dock").offsetHeight}px`);
}

/* Show a saved episode. */
function replay(name, text) {
  let turn;
  try {
    const record = JSON.parse(text);
    itemsOf(record);
    turn = new Turn(String(record.question), record.mode);
    turn.finish({ record, answer: record.answer });
  } catch (error) {
    note(`${name} is not a saved episode: ${error.message}`);
    return;
  }
  note();
  append(turn);
  const player = new Player(turn);
  player.button.focus({ preventScroll: true });
}

async function read(files) {
  for (const file of files) replay(file.name, await file.text());
}

async function greet() {
  try {
    const { data } = await (await request("v1/models", value("key"))).json();
    model = data[0]?.id ?? null;
    setText($("model"), model ?? "");
    document.title = model ? `${model} - asyncthink` : "asyncthink";
  } catch (error) {
    if (error.status === 401) note("This server wants an API key: see Settings.");
    else if (error.status) note(error.message);
    else note("No server answers here. Saved episodes can be replayed.");
  }
}

form.onsubmit = (event) => {
  event.preventDefault();
  const asked = question.value.trim();
  if (!asked || running || !form.reportValidity()) return;
  question.value = "";
  ask(asked);
};
question.onkeydown = (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  form.requestSubmit();
};
question.oninput = grow;
$("stop").onclick = () => running?.abort();
$("tune").onclick = () => {
  $("settings").hidden = !$("settings").hidden;
  $("tune").setAttribute("aria-expanded", String(!$("settings").hidden));
  grow();
};
form.elements.key.onchange = () => (note(), greet());
$("new").onclick = () => {
  turns.length = 0;
  $("turns").replaceChildren();
  $("welcome").hidden = false;
  $("new").hidden = true;
  note();
  question.focus();
};
$("open").onclick = () => $("file").click();
$("file").onchange = () => read($("file").files).then(() => ($("file").value = ""));
document.addEventListener("keydown", (event) => event.key === "Escape" && peek.hide());
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => {
  event.preventDefault();
  read(event.dataTransfer.files);
});
addEventListener("resize", grow);
grow();
greet();
question.focus();
