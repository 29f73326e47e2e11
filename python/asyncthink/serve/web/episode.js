/* The state of an episode after some of its items: agents, their runs (consecutive text of one kind), links. No DOM. */

const ENDED = {
  return: "returned", answer: "answered", error: "format error", end: "ended", stop: "stopped", budget: "out of tokens",
  length: "out of positions", timeout: "out of time", cancelled: "cut off", out_of_pages: "out of pages", failed: "failed",
};

class Agent {
  runs = [];
  state = "thinking";
  live = true;
  drawn = 0;
  clock = 0; // drawn tokens on the longest chain that leads here
  children = new Map(); // by the i of FORK-i
  tags = new Tags();
  waiting = null; // the run that grows while it waits
  calling = false; // a tool's words come next
  subquery = "";
  loose = 0; // tokens whose text is held back

  constructor(number, name, parent) {
    Object.assign(this, { number, name, parent, depth: parent ? parent.depth + 1 : 0 });
    this.path = ""; // the indices that lead here, as in 1.2
  }

  get last() {
    return this.runs.at(-1);
  }

  get end() {
    return this.last?.end ?? 0;
  }
}

class Episode {
  agents = new Map();
  links = [];
  changed = new Set(); // runs that a view has not shown yet
  step = 0;
  drawn = 0;
  joins = 0;

  constructor(mode) {
    this.mode = mode;
  }

  take(item) {
    this.step = Math.max(this.step, item.step);
    if (item.event) this.event(item.event);
    if (item.text !== undefined) this.token(item);
  }

  agent(number) {
    return this.agents.get(number) ?? this.begin(number, null);
  }

  begin(number, parent) {
    const many = this.mode === "parallel" || number > 0;
    const alone = many ? `agent ${number + 1}` : this.mode === "sequential" ? "one agent" : "organizer";
    const agent = new Agent(number, alone, parent);
    this.agents.set(number, agent);
    return agent;
  }

  token({ agent: number, text, sampled, forced, answer, step }) {
    const agent = this.agent(number);
    this.resume(agent, step);
    if (sampled) {
      agent.tags.joining = null;
      agent.calling = false;
      agent.drawn += 1;
      agent.clock += 1;
      this.drawn += 1;
    }
    agent.loose += 1;
    if (!text) {
      if (sampled && agent.last) this.reach(agent.last, step); // a token without text, such as end-of-text
      return;
    }
    const emit = (kind, index, said, from) => this.say(agent, kind, index, said, from, step);
    if (answer) emit("answer", null, text, step);
    else if (sampled || (forced && agent.tags.joining === null && !agent.calling)) agent.tags.feed(text, step, emit);
    else this.insert(agent, text, step, emit);
  }

  insert(agent, text, step, emit) {
    agent.tags.flush(emit);
    const index = agent.tags.joining;
    emit(index !== null ? "joined" : agent.calling ? "tool" : "prompt", index, text, step);
    if (index !== null && agent.last.text.endsWith(`</JOIN-${index}>`)) agent.tags.joining = null;
  }

  say(agent, kind, index, text, from, step) {
    let run = agent.last;
    if (!run || run.kind !== kind || run.index !== index) {
      run = { agent, kind, index, begin: from, end: from, text: "", tokens: 0, shown: 0 };
      if (index !== null) run.hue = (agent.children.get(index)?.number ?? this.agents.size) % HUES.length;
      if (agent.last?.kind === "prompt") this.changed.add(agent.last); // it stands where the next run begins
      agent.runs.push(run);
    }
    run.text += text;
    this.reach(run, step);
  }

  /* The run has a token of this step. */
  reach(run, step) {
    run.end = Math.max(run.end, step + 1);
    run.tokens += run.agent.loose;
    run.agent.loose = 0;
    this.changed.add(run);
  }

  event({ kind, agent: number, step, index, peer, text }) {
    const agent = this.agent(number);
    if (kind === "fork" && peer !== null && peer !== undefined) this.fork(agent, step, index, peer, text);
    else if (kind === "wait") this.wait(agent, `waits for ${agent.children.get(index)?.name ?? `worker ${index}`}`);
    else if (kind === "call") this.wait(agent, "waits for a tool", true);
    else if (kind === "join") this.join(agent, step, index);
    else if (kind === "answer" || kind === "return" || kind === "error" || kind === "stop") this.close(agent, kind);
  }

  fork(parent, step, index, number, subquery) {
    const worker = this.begin(number, parent);
    worker.path = parent.path ? `${parent.path}.${index}` : `${index}`;
    worker.name = `worker ${worker.path}`;
    worker.subquery = subquery;
    worker.clock = parent.clock;
    parent.children.set(index, worker);
    for (const run of parent.runs)
      if (run.index === index && run.hue !== number % HUES.length) {
        run.hue = number % HUES.length;
        this.changed.add(run);
      }
    this.links.push({ kind: "fork", parent, worker, step: step + 1 });
  }

  wait(agent, state, calling = false) {
    agent.tags.flush((...said) => this.say(agent, ...said, step));
    Object.assign(agent, { state, calling });
    agent.waiting = { agent, kind: "wait", index: null, begin: agent.end, end: agent.end, text: "", tokens: 0, shown: 0 };
    agent.runs.push(agent.waiting);
  }

  join(agent, step, index) {
    const worker = agent.children.get(index);
    if (!worker) return;
    this.resume(agent, step);
    this.joins += 1;
    agent.clock = Math.max(agent.clock, worker.clock);
    this.links.push({ kind: "join", parent: agent, worker, step: Math.max(step, worker.end), ready: worker.end });
  }

  resume(agent, step) {
    const run = agent.waiting;
    if (!run) return;
    run.end = Math.max(run.begin, step);
    agent.waiting = null;
    agent.state = "thinking";
    if (run.end > run.begin) this.changed.add(run);
  }

  close(agent, how) {
    agent.tags.flush((...said) => this.say(agent, ...said, this.step));
    this.resume(agent, this.step);
    if (agent.live) agent.state = ENDED[how] ?? how;
    agent.live = false;
  }

  /* The episode is over. Agents that still run were cut off; a record knows how each ended. */
  finish(record) {
    for (const agent of this.agents.values()) this.close(agent, "cancelled");
    for (const trace of record?.traces ?? []) {
      const agent = this.agents.get(trace.agent);
      if (agent) agent.state = ENDED[trace.finish] ?? trace.finish;
    }
  }

  /* Agents as their lanes stand: each followed by its workers. */
  lanes() {
    const below = (agent) => [agent, ...[...agent.children.values()].flatMap(below)];
    return [...this.agents.values()].filter((agent) => !agent.parent).flatMap(below);
  }

  get working() {
    return [...this.agents.values()].filter((agent) => agent.live && !agent.waiting).length;
  }

  get critical() {
    if (this.mode !== "parallel") return this.agents.get(0)?.clock ?? 0;
    return Math.max(0, ...[...this.agents.values()].map((agent) => agent.clock));
  }
}
