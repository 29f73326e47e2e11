/* One question with its episode: the answer, figures, timeline and texts. */

const ANSWERLESS = "no answer";

class Turn {
  constructor(question, mode) {
    this.items = [];
    this.record = null;
    this.mode = mode;
    this.done = false;
    this.taken = 0;
    this.said = "";
    this.heard = 0; // characters of it that are shown
    this.started = performance.now();
    this.episode = new Episode(mode);
    this.chart = new Chart((step) => this.seconds(step));
    this.texts = new Texts();
    this.verdict = h("span.chip", { hidden: true });
    this.reply = h("div.reply", { "aria-live": "polite", "aria-busy": "true" });
    this.words = new Growing(this.reply);
    this.status = h("p.status", {}, h("i", { "aria-hidden": "true" }), (this.statusText = h("span", {}, "reading the question")));
    this.summary = h("summary", {}, "How it was worked out");
    this.figures = h("dl.figures");
    this.controls = h("div.controls", { hidden: true });
    this.work = h("details.work", { open: true }, this.summary, this.figures, this.chart.element, this.controls, this.texts.element);
    const title = h(question.length > 90 ? "h2.long" : "h2", {}, question);
    this.element = h("section.turn", { "aria-label": "Question and answer" }, title, h("div.said", {}, this.verdict, this.reply), this.status, this.work);
    this.element.classList.add("running");
    this.clock = setInterval(() => this.later(), 250);
  }

  /* Seconds from the beginning to a step; null where nobody measured. */
  seconds(step) {
    const times = this.record?.step_times;
    return times?.length ? (step <= 0 ? 0 : times[Math.min(step, times.length) - 1]) : null;
  }

  add(item) {
    this.items.push(item);
    this.later();
  }

  /* Text of the answer, as it is streamed. */
  say(text) {
    this.said += text;
    this.later();
  }

  later() {
    this.frame ??= requestAnimationFrame(() => this.show());
  }

  show() {
    this.frame = null;
    while (this.taken < this.items.length) this.episode.take(this.items[this.taken++]);
    this.words.append(this.said.trimStart().slice(this.heard));
    this.heard = this.said.trimStart().length;
    this.draw();
  }

  draw() {
    this.chart.show(this.episode);
    this.texts.show(this.episode);
    this.count();
  }

  /* Show the first ``until`` items, whatever is shown now. */
  seek(until) {
    if (until < this.taken) {
      this.episode = new Episode(this.mode);
      this.chart.reset(this.steps);
      this.texts.reset();
      this.taken = 0;
    }
    while (this.taken < until) this.episode.take(this.items[this.taken++]);
    if (this.whole) this.episode.finish(this.record);
    this.draw();
    this.mark();
    this.texts.fold(this.whole);
  }

  mark() {
    if (!this.whole || !this.record || this.mode === "parallel") this.chart.unmark();
    else this.chart.mark(criticalPath(this.record.traces), this.record, this.episode);
  }

  /* The stream has ended: with the record of the episode if the server sent one. */
  finish({ record = null, answer = this.said || null, stopped = false, failed = "" }) {
    clearInterval(this.clock);
    cancelAnimationFrame(this.frame);
    this.frame = null;
    this.record = record;
    this.wall ??= record?.wall_seconds ?? (performance.now() - this.started) / 1000;
    this.done = true;
    if (record) {
      this.mode = record.mode;
      this.items = itemsOf(record);
      this.taken = Infinity; // what the stream showed gives way to the record
      this.seek(this.items.length);
    } else {
      this.show();
      this.episode.finish(null);
      this.chart.stretch(this.steps);
      this.draw();
      this.texts.fold(true);
    }
    this.end(answer, stopped, failed);
  }

  end(answer, stopped, failed) {
    this.answer = failed || stopped ? null : answer;
    this.reply.textContent = (answer ?? this.said).trim();
    const how = stopped ? "stopped" : failed ? "failed" : answer === null ? `${ANSWERLESS}${this.record ? ` (${this.record.finish})` : ""}` : "";
    const errors = [...(this.record?.failures ?? []), ...(this.record?.format_errors ?? []), failed].filter(Boolean);
    setText(this.verdict, how);
    this.verdict.hidden = !how;
    this.verdict.classList.add(stopped ? "open" : "bad");
    this.verdict.after(...errors.map((text) => h("span.chip.bad.error", {}, text)));
    this.reply.setAttribute("aria-busy", "false");
    this.status.hidden = true;
    this.element.classList.remove("running");
    this.work.hidden = !this.items.length;
    setText(this.summary, this.line());
  }

  /* Steps of the whole episode. */
  get steps() {
    return this.items.reduce((most, { step }) => Math.max(most, step), 0) + 1;
  }

  /* Whether all of a finished episode is shown. */
  get whole() {
    return this.done && this.taken === this.items.length;
  }

  line() {
    const agents = count(this.episode.agents.size, "agent");
    return `${agents}, ${count(this.critical, "token")} on the critical path of ${this.episode.drawn.toLocaleString("en")}, ${inSeconds(this.wall)}`;
  }

  get critical() {
    if (!this.done || !this.record || this.mode === "parallel" || !this.whole) return this.episode.critical;
    const stretches = criticalPath(this.record.traces);
    return stretches.reduce((sum, { agent, first, last }) => sum + this.record.traces[agent].sampled.slice(first, last).filter(Boolean).length, 0);
  }

  count() {
    const { episode, record } = this;
    const path = this.critical, { whole } = this;
    const now = whole ? this.wall : this.done ? this.seconds(episode.step) : (performance.now() - this.started) / 1000;
    const busy = episode.working, forks = episode.agents.size - episode.lanes().filter((agent) => !agent.parent).length;
    setText(this.statusText, busy ? `${count(busy, "agent")} at work` : "reading the question");
    const cells = [
      ["critical path", path.toLocaleString("en"), "tokens", `of ${episode.drawn.toLocaleString("en")} drawn by all`],
      ["wall clock", now === null ? "–" : inSeconds(now), "", count(episode.step + 1, "step")],
      ["at work on average", path ? (episode.drawn / path).toFixed(2) : "–", "agents", whole ? (record ? `pool of ${record.pool}` : "") : `${busy} now`],
      ["forks, joins", `${forks}`, `and ${episode.joins}`, `${count(episode.agents.size, "agent")} in all`],
      ["prefix shared", whole && record ? inBytes(record.kv_bytes_shared) : "–", "", whole && record ? `${inBytes(record.kv_bytes_copied)} copied` : "known at the end"],
    ];
    if (!this.cells) {
      this.cells = cells.map(([name], k) => {
        const value = document.createTextNode(""), unit = h("small"), note = h("p");
        this.figures.append(h(k ? "div" : "div.path", {}, h("dt", {}, name), h("dd", {}, value, " ", unit), note));
        return { value, unit, note };
      });
    }
    cells.forEach(([, value, unit, note], k) => {
      if (this.cells[k].value.data !== value) this.cells[k].value.data = value;
      setText(this.cells[k].unit, unit);
      setText(this.cells[k].note, note);
    });
  }
}
