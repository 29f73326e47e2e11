/* The timeline as it grows: a lane for each agent, blocks for its runs, arrows for forks and joins, over steps.
   It looks like the static timeline (asyncthink.view.html). Places are custom properties, in steps; --span scales all. */

const VERBS = {
  prompt: "was told", think: "thinks", fork: "forks", join: "asks to join", joined: "is given", tool: "is told by a tool", answer: "answers",
  return: "returns", wait: "waits",
};
const SHOWN_IN_BLOCK = 240; // characters
const SHORTEST_SPAN = 40; // steps
const LEGEND = [["k-think", "thinking"], ["k-tag", "fork or join, in the worker's colour"], ["k-wait", "waiting"], ["l-path", "critical path"]];

class Chart {
  constructor(seconds) {
    this.seconds = seconds; // step -> seconds, or null
    this.plot = h("div.chart", { role: "group", "aria-label": "Timeline. Arrow keys move from block to block." });
    this.axis = h("div.axis", { "aria-hidden": "true" });
    const legend = h("p.legend", {}, ...LEGEND.map(([name, text]) => h(`span.${name}`, {}, text)));
    this.element = h("div.live", {}, this.plot, this.axis, legend);
    this.plot.addEventListener("keydown", (event) => this.key(event));
    this.plot.addEventListener("click", (event) => event.target.closest(".seg,.dot")?.focus()); // not all browsers do
    this.plot.addEventListener("focusin", (event) => event.target.run && this.peek(event.target));
    this.plot.addEventListener("pointerover", (event) => {
      const block = event.target.closest(".seg,.dot");
      if (block && event.pointerType === "mouse") this.peek(block);
    });
    this.plot.addEventListener("pointerleave", () => this.plot.contains(document.activeElement) || peek.hide());
    this.plot.addEventListener("focusout", () => peek.hide());
    this.reset();
  }

  /* An empty chart of ``span`` steps, which grows. */
  reset(span = SHORTEST_SPAN) {
    this.plot.replaceChildren();
    this.lanes = new Map(); // agent -> {element, track, number of tokens, note}
    this.links = [];
    this.span = 0;
    this.stretch(span);
  }

  /* Show what changed in an episode. */
  show(episode) {
    if (episode.agents.size !== this.lanes.size) this.arrange(episode);
    for (const run of episode.changed) this.block(run);
    for (const [agent, lane] of this.lanes) this.caption(agent, lane, episode);
    while (this.links.length < episode.links.length) this.link(episode.links[this.links.length]);
    const last = Math.max(1, ...[...episode.agents.values()].map((agent) => agent.end));
    if (last > this.span) this.stretch(Math.ceil(last * 1.35));
  }

  arrange(episode) {
    const order = episode.lanes();
    order.forEach((agent, row) => {
      if (!this.lanes.has(agent)) this.lanes.set(agent, this.lane(agent));
      const { element } = this.lanes.get(agent);
      if (this.plot.querySelectorAll(":scope > .lane")[row] !== element)
        this.plot.insertBefore(element, this.plot.querySelectorAll(":scope > .lane")[row] ?? null);
    });
    this.rows = new Map(order.map((agent, row) => [agent, row]));
    this.links.forEach((parts) => parts.forEach((part) => this.place(part)));
    this.element.classList.toggle("dense", order.length > 6);
  }

  lane(agent) {
    const num = h("span.num"), track = h("div.track"), note = h("span.sub");
    const head = h("div.cap", { "--depth": agent.depth }, h("b", {}, agent.name), note, num);
    const element = h("div.lane", { "--h": HUES[agent.number % HUES.length] }, head, track);
    element.setAttribute("role", "group");
    element.setAttribute("aria-label", agent.name);
    return { element, track, num, note };
  }

  caption(agent, lane, episode) {
    const working = agent.live && !agent.waiting;
    setText(lane.num, `${agent.live ? "" : `${agent.state} · `}${count(agent.drawn, "token")}`);
    setText(lane.note, agent.subquery.replace(/\s+/g, " "));
    lane.element.classList.toggle("working", working);
    if (agent.waiting) {
      agent.waiting.end = Math.max(agent.waiting.begin, episode.step + 1);
      if (agent.waiting.end > agent.waiting.begin) this.block(agent.waiting);
    }
  }

  block(run) {
    const lane = this.lanes.get(run.agent);
    if (!run.element) {
      run.element = ["prompt", "joined", "tool"].includes(run.kind) ? this.dot(run) : this.segment(run);
      run.element.run = run;
      run.element.setAttribute("aria-label", this.told(run));
      run.element.tabIndex = this.plot.querySelector("[tabindex='0']") ? -1 : 0;
      lane.track.append(run.element);
    }
    const after = run.agent.runs[run.agent.runs.indexOf(run) + 1];
    const place = run.kind === "prompt" ? (after?.begin ?? run.end) : run.kind === "joined" || run.kind === "tool" ? run.end : run.begin;
    run.element.style.setProperty("--b", place);
    run.element.style.setProperty("--e", run.end);
    if (run.hue !== undefined) run.element.style.setProperty("--h", HUES[run.hue]);
    if (run.label && run.label.length < SHOWN_IN_BLOCK)
      run.label.appendData(run.text.trimStart().slice(run.label.length, SHOWN_IN_BLOCK).replace(/\s/g, " "));
    if (run.element === document.activeElement) this.peek(run.element);
  }

  segment(run) {
    const label = h("span");
    if (run.kind === "wait") label.append(h("b", {}, "waits"));
    else label.append((run.label = document.createTextNode("")));
    return h(`button.seg.${run.kind === "answer" ? "answer-seg" : run.kind}`, { type: "button" }, label);
  }

  dot(run) {
    const joined = run.kind === "joined";
    return h(`button.dot.${joined ? "joined" : "told"}`, { type: "button" }, joined ? `${run.index}` : "");
  }

  link({ kind, parent, worker, step, ready }) {
    const style = { "--h": HUES[worker.number % HUES.length], "--s": step };
    const parts = [h(`div.link.${kind}`, style)];
    if (kind === "join" && step > ready) parts.push(h("div.held", { ...style, "--b": ready, "--e": step }));
    for (const part of parts) {
      Object.assign(part, { parent, worker, kind });
      this.place(part);
    }
    this.links.push(parts);
    this.plot.prepend(...parts);
  }

  place(part) {
    part.style.setProperty("--p", this.rows.get(part.parent));
    part.style.setProperty("--w", this.rows.get(part.worker));
  }

  /* Mark the longest chain: stretches of criticalPath over a record's traces. */
  mark(path, record, episode) {
    this.unmark();
    path.forEach(({ agent, first, last }, k) => {
      const trace = record.traces[agent];
      const steps = trace.steps.slice(first, last).filter((_, at) => trace.sampled[first + at]);
      const lane = this.lanes.get(episode.agents.get(agent));
      if (steps.length && lane) lane.track.append(h("div.run", { "--b": steps[0], "--e": steps.at(-1) + 1 }));
      const [from, to] = [agent, path[k + 1]?.agent];
      const hop = (part) =>
        part.kind === "fork"
          ? part.parent.number === from && part.worker.number === to
          : part.worker.number === from && part.parent.number === to;
      for (const [part] of this.links) if (hop(part)) part.classList.add("crit");
    });
  }

  unmark() {
    this.plot.querySelectorAll(".run").forEach((run) => run.remove());
    this.plot.querySelectorAll(".crit").forEach((link) => link.classList.remove("crit"));
  }

  stretch(span) {
    if (span === this.span) return;
    this.span = span;
    this.element.style.setProperty("--span", span);
    let size = 1;
    for (let e = 1; span / size > 8; e *= 10) size = [1, 2, 5].map((m) => m * e).find((n) => span / n <= 8) ?? e * 10;
    const ticks = [];
    for (let step = 0; step < span - size * 0.6; step += size) ticks.push(this.tick(step, step ? "" : " steps"));
    this.axis.replaceChildren(...ticks, this.tick(span, " steps", "i.end"));
  }

  tick(step, unit, name = "i") {
    const seconds = this.seconds(step);
    return h(name, { "--s": step }, `${step}${unit}`, ...(seconds === null ? [] : [h("br"), inSeconds(seconds)]));
  }

  peek(block) {
    const { run } = block;
    const facts = [run.end - run.begin > 1 ? `steps ${run.begin} to ${run.end - 1}` : `step ${run.begin}`];
    const seconds = this.seconds(run.begin);
    if (seconds !== null) facts.push(`at ${inSeconds(seconds)}`);
    if (run.tokens) facts.unshift(count(run.tokens, "token"));
    const told = this.told(run);
    block.setAttribute("aria-label", `${told}, ${facts.join(", ")}`);
    peek.show(block, told, facts.join(", "), run.kind === "wait" ? "" : run.text);
  }

  told(run) {
    return `${run.agent.name} ${VERBS[run.kind]}`;
  }

  key(event) {
    const run = event.target.run;
    if (!run) return;
    const lanes = [...this.plot.querySelectorAll(".lane")].map((lane) => [...lane.querySelectorAll(".seg,.dot")]);
    const row = lanes.findIndex((blocks) => blocks.includes(event.target));
    const column = lanes[row].indexOf(event.target);
    const near = (blocks) =>
      blocks?.reduce((best, block) => (Math.abs(block.run.begin - run.begin) < Math.abs(best.run.begin - run.begin) ? block : best), blocks[0]);
    const next = {
      ArrowLeft: lanes[row][column - 1], ArrowRight: lanes[row][column + 1],
      ArrowUp: near(lanes[row - 1]), ArrowDown: near(lanes[row + 1]),
      Home: lanes[row][0], End: lanes[row].at(-1),
    }[event.key];
    if (!next) return;
    event.preventDefault();
    event.target.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  }
}

const setText = (element, text) => element.textContent !== text && (element.textContent = text);

/* The panel that shows a block's text. */
const peek = {
  panel: document.querySelector(".peek"),
  block: null,

  show(block, told, facts, text) {
    if (this.block !== block) this.block?.classList.remove("on");
    this.block = block;
    block.classList.add("on");
    this.panel.querySelector("h2").replaceChildren(`${told} `, h("em", {}, facts));
    setText(this.panel.querySelector("pre"), text);
    this.panel.hidden = false;
  },

  hide() {
    this.block?.classList.remove("on");
    this.block = null;
    this.panel.hidden = true;
  },
};
