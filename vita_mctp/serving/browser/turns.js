// The conversation as it is shown: a list entry for each thing said.

export function element(name, text = "", attributes = {}) {
  const made = document.createElement(name);
  made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

export class Turns {
  // replay: plays a list of chunks; again: asks the item of this id once more.
  constructor(list, replay, again) {
    this.list = list;
    this.replay = replay;
    this.again = again;
    this.question = null;
    this.turns = new Map();
  }

  add(id, role, question = this.question) {
    const entry = element("li", "", { class: role });
    const text = element("p", role === "user" ? "…" : "");
    entry.append(element("p", role === "user" ? "You" : "Answer", { class: "who" }), text);
    this.list.append(entry);
    entry.scrollIntoView({ block: "end" });
    if (role === "user") this.question = id;
    const turn = { entry, text, words: "", sound: [], question };
    this.turns.set(id, turn);
    return turn;
  }

  get(id) { return this.turns.get(id); }

  write(id, delta, whole = false) {
    const turn = this.get(id);
    if (!turn) return;
    turn.words = whole ? delta : turn.words + delta;
    turn.text.textContent = turn.words || "…";
    turn.entry.scrollIntoView({ block: "end" });
  }

  finish(id, metrics, firstSound, interrupted) {
    const turn = this.get(id);
    if (!turn) return;
    const parts = [];
    if (metrics) {
      parts.push(metrics.mode);
      if (firstSound !== undefined) parts.push(`first sound ${firstSound.toFixed(2)} s`);
      parts.push(`${metrics.tokens_per_second.toFixed(0)} tokens/s`);
      if (metrics.real_time_factor) parts.push(`real-time factor ${metrics.real_time_factor.toFixed(2)}`);
      if (metrics.levels.length) turn.entry.append(timeline(metrics));
    }
    if (interrupted) parts.push("interrupted");
    const line = element("p", parts.join(" · "), { class: "metrics" });
    if (turn.sound.length) {
      const heard = element("button", "Hear again");
      heard.onclick = () => this.replay(turn.sound);
      line.append(heard);
    }
    if (turn.question) {
      const asked = element("button", "Ask again", { title: "the same question, in the mode chosen below" });
      asked.onclick = () => this.again(turn.question);
      line.append(asked);
    }
    turn.entry.append(line);
    turn.entry.scrollIntoView({ block: "end" });
  }

  clear() {
    this.turns.clear();
    this.question = null;
    this.list.replaceChildren();
  }
}

// A bar for each token: tall ones are text, dark ones the backbone's, the others of a colour for each block.
function timeline({ kinds, levels }) {
  const text = kinds.filter((kind) => kind === "text").length;
  const own = levels.filter((level) => level === 0).length;
  const label = `${levels.length} tokens, ${text} of them text; the backbone made ${own}, the blocks ${levels.length - own}`;
  const bars = element("div", "", { class: "tokens", role: "img", "aria-label": label, title: label });
  levels.forEach((level, index) => {
    const maker = level ? `block ${level - 1}` : "backbone";
    const bar = element("i", "", { class: kinds[index], "data-level": level, title: `${kinds[index]}, ${maker}` });
    bar.style.setProperty("--level", level);
    bars.append(bar);
  });
  return bars;
}
