/* Replay of a finished episode: play and pause, speed, a slider over its steps. */

const SPEEDS = [[10, "10 steps a second"], [30, "30 steps a second"], [100, "100 steps a second"], [300, "300 steps a second"], [0, "as recorded"]];

class Player {
  constructor(turn) {
    this.turn = turn;
    this.steps = turn.steps;
    this.at = this.steps; // steps shown, a fraction while playing
    this.playing = null;
    const timed = turn.record?.step_times?.length > 0;
    const speeds = SPEEDS.filter(([speed]) => speed || timed).map(([value, text]) => h("option", { value }, text));
    this.button = h("button.quiet", { type: "button" }, "Replay");
    this.speed = h("select", { "aria-label": "Speed" }, ...speeds);
    this.speed.value = SPEEDS.find(([speed]) => this.steps / speed < 12)?.[0] ?? 300;
    this.slider = h("input", { type: "range", min: 0, max: this.steps, value: this.steps, "aria-label": "Step" });
    this.place = h("output");
    turn.controls.append(this.button, this.speed, this.slider, this.place);
    if (turn.record) turn.controls.append(this.saver());
    turn.controls.hidden = false;
    this.button.onclick = () => (this.playing ? this.pause() : this.play());
    this.speed.onchange = () => this.begin();
    this.slider.oninput = () => (this.go(Number(this.slider.value)), this.pause());
    this.tell();
  }

  saver() {
    const save = h("button.quiet", { type: "button" }, "Save");
    save.onclick = () => {
      const url = URL.createObjectURL(new Blob([JSON.stringify(this.turn.record)], { type: "application/json" }));
      h("a", { href: url, download: "episode.json" }).click();
      URL.revokeObjectURL(url);
    };
    return save;
  }

  play() {
    if (this.at >= this.steps) this.go(0);
    this.begin();
    let before = performance.now();
    const frame = (now) => {
      this.go(this.later((now - before) / 1000));
      before = now;
      if (this.at < this.steps) this.playing = requestAnimationFrame(frame);
      else this.pause();
    };
    this.playing = requestAnimationFrame(frame);
    this.tell();
  }

  begin() {
    this.time = this.turn.seconds(Math.floor(this.at)); // of the record, while it plays as recorded
  }

  /* The place ``passed`` seconds later. */
  later(passed) {
    const speed = Number(this.speed.value);
    if (speed) return this.at + speed * passed;
    this.time += passed;
    const next = this.turn.record.step_times.findIndex((end) => end > this.time);
    return next < 0 ? this.steps : next;
  }

  pause() {
    cancelAnimationFrame(this.playing);
    this.playing = null;
    this.tell();
  }

  go(at) {
    this.at = Math.min(at, this.steps);
    const { items } = this.turn;
    const until = items.findIndex((item) => item.step >= Math.floor(this.at));
    this.turn.seek(until < 0 ? items.length : until);
    this.tell();
  }

  tell() {
    const step = Math.floor(this.at);
    setText(this.button, this.playing ? "Pause" : step < this.steps ? "Play" : "Replay");
    this.slider.value = step;
    this.slider.setAttribute("aria-valuetext", `step ${step} of ${this.steps}`);
    setText(this.place, `${step} / ${this.steps}`);
  }
}
