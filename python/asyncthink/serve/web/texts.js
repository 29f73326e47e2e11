/* What each agent reads and writes: a card that follows the text while the agent works, a line to open afterwards. */

class Texts {
  constructor() {
    this.element = h("div.texts.working");
    this.folded = false;
    this.reset();
  }

  reset() {
    this.element.replaceChildren();
    this.cards = new Map();
  }

  show(episode) {
    if (episode.agents.size !== this.cards.size) this.arrange(episode);
    for (const run of episode.changed) this.write(run);
    episode.changed.clear();
    for (const [agent, card] of this.cards) {
      setText(card.state, `${agent.state} · ${count(agent.drawn, "token")}`);
      card.element.classList.toggle("rest", !agent.live || agent.waiting !== null);
    }
  }

  arrange(episode) {
    episode.lanes().forEach((agent, row) => {
      if (!this.cards.has(agent)) this.cards.set(agent, this.card(agent));
      const { element } = this.cards.get(agent);
      if (this.element.children[row] !== element) this.element.insertBefore(element, this.element.children[row] ?? null);
    });
    this.element.classList.toggle("many", this.cards.size > 4);
  }

  card(agent) {
    const state = h("small"), pre = h("pre");
    const head = h("summary", {}, agent.name, state);
    const scroll = h("div.scroll", { tabIndex: 0, role: "region", "aria-label": `text of ${agent.name}` }, pre);
    const element = h("details.agent", { "--h": HUES[agent.number % HUES.length], open: !this.folded }, head, scroll);
    return { element, state, pre };
  }

  write(run) {
    if (run.kind === "wait") return;
    if (!run.words) {
      const span = h(`span.p-${run.kind}`);
      run.words = new Growing(span);
      this.cards.get(run.agent).pre.append(span);
    }
    if (run.hue !== undefined) run.words.element.style.setProperty("--h", HUES[run.hue]);
    run.words.append(run.text.slice(run.shown));
    run.shown = run.text.length;
  }

  /* Cards beside each other while agents work; closed lines below each other afterwards. */
  fold(done) {
    if (done === this.folded) return;
    this.folded = done;
    this.element.classList.toggle("working", !done);
    for (const { element } of this.cards.values()) element.open = !done;
  }
}
