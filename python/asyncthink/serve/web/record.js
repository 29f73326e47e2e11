/* What the texts of an episode mean: tags as they are drawn, a record's tokens in order, the critical path. */

const TAG = /<(\/?)(?:(FORK|JOIN)-(\d{1,3})|(ANSWER|RETURN))>/;
const TAG_BEGUN = /<\/?(?:[A-Z]{0,6}|(?:FORK|JOIN)-\d{0,3})$/;

/* Cuts an agent's text into stretches of one kind: emit(kind, index, text, the step that began it). */
class Tags {
  inside = null; // {kind, index} between <FORK-i>, <ANSWER> or <RETURN> and its end
  joining = null; // the i of a <JOIN-i> that has no end yet
  held = ""; // may become a tag
  heldSince = 0;

  feed(text, step, emit) {
    let from = this.held ? this.heldSince : step;
    let rest = this.held + text;
    this.held = "";
    for (let tag; (tag = TAG.exec(rest)); rest = rest.slice(tag.index + tag[0].length)) {
      this.plain(rest.slice(0, tag.index), from, emit);
      if (tag.index) from = step;
      this.tag(tag, from, emit);
      from = step;
    }
    const cut = rest.search(TAG_BEGUN);
    if (cut >= 0) {
      this.held = rest.slice(cut);
      this.heldSince = cut ? step : from;
      rest = rest.slice(0, cut);
    }
    this.plain(rest, from, emit);
  }

  flush(emit) {
    const text = this.held;
    this.held = "";
    this.plain(text, this.heldSince, emit);
  }

  plain(text, step, emit) {
    if (text) emit(this.inside?.kind ?? "think", this.inside?.index ?? null, text, step);
  }

  tag([whole, slash, numbered, digits, single], step, emit) {
    const kind = (numbered ?? single).toLowerCase();
    const index = digits ? Number(digits) : null;
    if (this.inside) {
      emit(this.inside.kind, this.inside.index, whole, step);
      if (slash && kind === this.inside.kind && index === this.inside.index) this.inside = null;
    } else if (slash) {
      emit("think", null, whole, step);
    } else {
      emit(kind, index, whole, step);
      if (kind === "join") this.joining = index;
      else this.inside = { kind, index };
    }
  }
}

/* A record's events and tokens in the order in which a stream has them. Throws an Error for anything else. */
function itemsOf(record) {
  if (!Array.isArray(record?.traces) || !record.traces.length) throw new Error("it has no traces");
  const items = [];
  for (const event of record.events ?? []) {
    const late = event.kind !== "start" && event.kind !== "fork";
    items.push({ agent: event.agent, step: event.step, rank: late ? 2 : 0, event });
  }
  for (const trace of record.traces) {
    const { agent, tokens, sampled, steps, pieces } = trace;
    if (![sampled, steps, pieces].every((column) => column?.length === tokens?.length))
      throw new Error(`agent ${agent} lacks the text or the step of a token`);
    const forced = new Set(trace.forced ?? []);
    pieces.forEach((text, k) =>
      items.push({ agent, step: steps[k], rank: 1, text, sampled: sampled[k], forced: forced.has(k) }));
  }
  return items.sort((a, b) => a.step - b.step || a.rank - b.rank || (a.rank === 1 ? a.agent - b.agent : 0));
}

/* Stretches {agent, first, last} of own tokens on the longest chain, in order (asyncthink.episode.critical_path). */
function criticalPath(traces) {
  const children = new Map(), ends = new Map(), detours = new Map();
  for (const { parent, fork_at, agent } of traces)
    if (parent !== null) children.set(`${parent} ${fork_at}`, [...(children.get(`${parent} ${fork_at}`) ?? []), agent]);
  const walk = (agent, clock) => {
    const { tokens, sampled, joins } = traces[agent];
    const waits = new Map(joins.map((join) => [join.at, join.worker]));
    detours.set(agent, new Map());
    for (let position = 0; position <= tokens.length; position++) {
      for (const child of children.get(`${agent} ${position}`) ?? []) walk(child, clock);
      const worker = waits.get(position);
      if (worker !== undefined && ends.get(worker) > clock && position < tokens.length) {
        clock = ends.get(worker);
        detours.get(agent).set(position, worker);
      }
      clock += Boolean(sampled[position]);
    }
    ends.set(agent, clock);
  };
  walk(0, 0);
  const path = [];
  for (let agent = 0, last = traces[0].tokens.length; agent !== null; ) {
    const waited = Math.max(-1, ...[...detours.get(agent).keys()].filter((position) => position < last));
    path.unshift({ agent, first: Math.max(0, waited), last });
    if (waited >= 0) {
      agent = detours.get(agent).get(waited);
      last = traces[agent].tokens.length;
    } else {
      last = traces[agent].fork_at;
      agent = traces[agent].parent;
    }
  }
  return path.filter(({ first, last }) => first < last);
}
