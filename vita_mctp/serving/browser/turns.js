// The conversation as it is shown: what was said, and the answers to one question beside each other.

export function element(name, text = "", attributes = {}) {
  const made = document.createElement(name);
  made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

export function button(text, pressed, attributes = {}) {
  const made = element("button", text, { type: "button", ...attributes });
  made.onclick = pressed;
  return made;
}

export class Turns {
  // replay: plays what a turn said; again: asks the item of this id once more.
  constructor(list, replay, again) {
    Object.assign(this, { list, replay, again });
    this.clear();
  }

  clear() {
    this.turns = new Map(); // what is known of each, by its item's id: plain values, which a browser can keep
    this.views = new Map();
    this.list.replaceChildren();
  }

  get(id) { return this.turns.get(id); }

  get lastQuestion() { return [...this.turns.values()].findLast(({ role }) => role === "user")?.id; }

  // The conversation up to a question, as items of the server.
  upTo(id) {
    const said = [...this.turns.values()].filter(({ aside }) => !aside).map((turn) => turn.id);
    return said.slice(0, said.indexOf(id) + 1);
  }

  // turn: id and role; of an answer also question, the item that it answers. aside: it is no part of the conversation.
  add(given) {
    const user = given.role === "user";
    const turn = { words: "", sound: [], kinds: [], levels: [], number: this.turns.size, ...given };
    const view = {
      entry: element(user ? "li" : "article", "", { class: turn.role }),
      text: element("p"),
      tokens: element("div", "", { class: "tokens", role: "img" }),
      facts: element("span"),
      line: element("p", "", { class: "metrics" }),
      hear: button("Hear again", () => this.replay(turn)),
      ask: button("Ask again", () => this.again(turn.question), { title: "the same question, in the mode chosen below" }),
    };
    view.line.append(view.facts, view.hear);
    if (!user) view.line.append(view.ask);
    view.entry.append(element("p", user ? "You" : "Answer", { class: "who" }), view.text, view.tokens, view.line);
    (user ? this.list : this.answersTo(turn.question)).append(view.entry);
    this.turns.set(turn.id, turn);
    this.views.set(turn.id, view);
    return this.update(turn.id, {});
  }

  answersTo(question) {
    const asked = this.views.get(question);
    const answers = asked?.answers ?? element("li", "", { class: "answers" });
    if (asked) asked.answers = answers;
    if (!answers.parentNode) this.list.append(answers);
    return answers;
  }

  // changes: values of the turn's that are known now.
  update(id, changes) {
    const turn = this.get(id);
    if (!turn) return undefined;
    this.draw(Object.assign(turn, changes));
    const { entry, answers } = this.views.get(id);
    if (!answers) entry.scrollIntoView({ block: "end" });
    return turn;
  }

  write(id, delta) { this.update(id, { words: (this.get(id)?.words ?? "") + delta }); }

  // Tokens behind those that are known: `kinds` and `levels`, in their order.
  grow(id, { kinds, levels }) {
    const turn = this.get(id);
    if (!turn) return;
    turn.kinds.push(...kinds);
    turn.levels.push(...levels);
    this.draw(turn); // without scrolling, which has the browser lay the page out at once: there are many of them
  }

  draw(turn) {
    const { entry, text, tokens, facts, line, hear, ask } = this.views.get(turn.id);
    const over = Boolean(turn.finished);
    entry.classList.toggle("finished", over);
    text.textContent = turn.words || "…";
    for (let index = tokens.childElementCount; index < turn.levels.length; index += 1) tokens.append(cell(turn, index));
    tokens.hidden = !turn.levels.length;
    if (over) tokens.setAttribute("aria-label", described(turn));
    facts.textContent = metrics(turn);
    hear.hidden = !over || !turn.sound.length;
    ask.hidden = !over || !turn.question;
    line.hidden = hear.hidden && !facts.textContent;
  }
}

// The words of an answer as far as they were heard: the server cuts its history alike.
export function heardWords({ words, sound, heard }) {
  if (heard === undefined) return words;
  const all = sound.reduce((sum, samples) => sum + samples.length, 0);
  const list = words.split(/\s+/).filter(Boolean);
  return list.slice(0, Math.round(list.length * Math.min(1, heard / (all || 1)))).join(" ");
}

function metrics({ mode, first, speed, factor, interrupted }) {
  const known = [
    mode,
    first !== undefined && `first sound ${first.toFixed(2)} s`,
    speed && `${speed.toFixed(0)} tokens/s`,
    factor && `real-time factor ${factor.toFixed(2)}`,
    interrupted && "interrupted",
  ];
  return known.filter(Boolean).join(" · ");
}

const maker = (level) => (level ? `block ${level - 1}` : "backbone");

// One token: its height is its kind, its colour who made it; a cycle begins with the backbone's first.
export function cell({ kinds, levels }, index) {
  const [kind, level] = [kinds[index], levels[index]];
  const begins = level === 0 && levels[index - 1] !== 0;
  const made = element("i", "", { class: kind + (begins ? " cycle" : ""), "data-level": level, title: `${kind}, ${maker(level)}` });
  made.style.setProperty("--level", level);
  return made;
}

function described({ kinds, levels }) {
  const count = (list, value) => list.filter((each) => each === value).length;
  const by = [...new Set(levels)].sort((a, b) => a - b).map((level) => `${maker(level)} ${count(levels, level)}`);
  return `${levels.length} tokens, ${count(kinds, "text")} of text and ${count(kinds, "audio")} of audio. Made by: ${by.join(", ")}.`;
}
