// The conversation page: buttons, the microphone, the session and the player, wired together.

import { Kept } from "./kept.js";
import { openMicrophone } from "./microphone.js";
import { Player, RATE } from "./player.js";
import { Session, decode, encode } from "./session.js";
import { Turns, button, cell, element, heardWords } from "./turns.js";

const PREFIX = 300; // ms that the server puts before speech
const $ = (id) => document.getElementById(id);
const player = new Player(over);
const turns = new Turns($("turns"), replay, again);
// What happens now, and what happened; tests and a browser's console read it.
const live = { answering: null, hands: false, held: false, interruptions: [], asked: 0, next: null, player, turns,
  sent: () => position };
globalThis.live = live;
const silenced = new Set(); // answers of which no more is to be heard
let microphone = null;
let session = null;
let conversation = null; // {id: when it began, title, model}
let kept = null; // where the browser keeps conversations
let sent = []; // [position in samples, time] of the latest chunks
let position = 0;

function show(text, wrong = false) {
  $("status").textContent = text;
  $("status").classList.toggle("wrong", wrong);
}

function idle() {
  $("stop").disabled = !(live.answering || player.playing);
  show(live.hands ? "Listening: speak whenever you like." : "Press Hands-free, hold the other button, or type.");
}

// What was asked for is made and heard: the same question in the second mode is next, if there is one.
function over() {
  if (live.answering || player.playing) return;
  const { next } = live;
  live.next = null;
  if (next) again(next.question, next.mode);
  else idle();
}

async function keep(turn) {
  const named = turn.role === "user" && !conversation.title;
  if (named) conversation.title = turn.words;
  try {
    await kept?.keep(conversation, turn);
    if (named) await kept?.show(conversation.id);
  } catch {
    show("This browser has no room for another answer; remove some conversations.", true);
  }
}

const handlers = {
  closed: async (reason) => {
    hush();
    live.answering = null;
    await listen(false);
    show(`The connection ended${reason ? `: ${reason}` : ""}. Press New conversation.`, true);
  },
  error: ({ error }) => { if (error.code !== "response_cancel_not_active") show(error.message, true); },
  "input_audio_buffer.speech_started": ({ audio_start_ms }, came) => {
    interrupt((audio_start_ms + PREFIX) * RATE / 1000, came);
    show("You speak.");
  },
  "input_audio_buffer.speech_stopped": () => { live.asked = performance.now(); },
  "conversation.item.added": ({ item }) => {
    if (item.role !== "user" || turns.get(item.id)) return;
    $("about").open = false;
    const words = item.content[0]?.text ?? "";
    const turn = turns.add({ id: item.id, role: "user", words, finished: Boolean(words) });
    if (words) keep(turn);
  },
  "conversation.item.input_audio_transcription.delta": ({ item_id, delta }) => turns.write(item_id, delta),
  "conversation.item.input_audio_transcription.completed": ({ item_id, transcript }) => {
    turns.update(item_id, { words: transcript || "(no words)" });
    $("said").textContent = `You said: ${transcript || "no words"}`;
    session.send("conversation.item.retrieve", { item_id });
  },
  "conversation.item.input_audio_transcription.failed": ({ item_id }) => {
    turns.update(item_id, { words: "(not written down)" });
    session.send("conversation.item.retrieve", { item_id });
  },
  "conversation.item.retrieved": ({ item: { id, content: [{ audio }] } }) => {
    keep(turns.update(id, { recording: audio, sound: [decode(audio)], finished: true }));
  },
  "response.created": ({ response }) => {
    live.answering = response.id;
    live.item = null;
    live.aside = response.metadata;
    $("stop").disabled = false;
    show(live.hands ? "Answering; speak to interrupt." : "Answering.");
  },
  "response.output_item.added": ({ item }) => {
    live.item = item.id;
    const { question = turns.lastQuestion, mode = $("mode").value } = live.aside ?? {};
    turns.add({ id: item.id, role: "assistant", question, mode, aside: Boolean(live.aside) });
  },
  "vita_mctp.response.tokens.delta": ({ item_id, ...made }) => turns.grow(item_id, made),
  "response.output_audio_transcript.delta": ({ item_id, delta }) => turns.write(item_id, delta),
  "response.output_audio.delta": ({ item_id, delta }) => {
    if (silenced.has(item_id)) return; // it was on its way
    const samples = decode(delta);
    const wait = player.push(item_id, samples);
    const turn = turns.get(item_id);
    turn.sound.push(samples);
    if (turn.first === undefined) turns.update(item_id, { first: (performance.now() - live.asked) / 1000 + wait });
  },
  "response.done": ({ response }) => {
    live.answering = null;
    finish(response);
    if (response.status === "failed") show(response.status_details.error.message, true);
    else over();
  },
};

function finish({ metrics, status, output: [{ id, content }] }) {
  const turn = turns.update(id, { finished: true, interrupted: status === "cancelled" });
  const text = content[0].transcript;
  if (text) $("said").textContent = `${turn.aside ? `In mode ${turn.mode}` : "Answer"}: ${text}`;
  if (metrics?.levels.length) {
    const { mode, tokens_per_second: speed, real_time_factor: factor, kinds, levels } = metrics;
    turns.update(id, { mode, speed, factor, kinds, levels });
    const second = $("beside").value;
    if (second && status === "completed" && !turn.aside) live.next = { question: turn.question, mode: second };
  }
  keep(turn);
}

// The user spoke, from this sample on: what plays is over, and the server hears how much was heard.
function interrupt(from, came) {
  const chunk = sent.findLast(([start]) => start <= from);
  const cut = hush();
  const now = performance.now();
  if (cut) live.interruptions.push({ ...cut, told: now - came, after: chunk ? now - chunk[1] : null });
}

// Empties the player, and lets nothing more in of the answer that is being made.
function hush() {
  const cut = player.stop();
  const turn = turns.get(cut?.item ?? (live.answering && live.item));
  live.next = null;
  if (live.answering) silenced.add(live.item);
  if (!turn) return cut;
  turn.heard = cut?.played ?? 0;
  if (!turn.aside) session.truncate(turn.id, turn.heard, RATE);
  if (turn.finished) keep(turn);
  return cut;
}

async function replay({ sound }) {
  hush();
  await player.open();
  for (const samples of sound) player.push("replay", samples);
}

// Asks once more, and not as part of the conversation.
async function again(question, mode = $("mode").value) {
  await player.open();
  quiet();
  live.asked = performance.now();
  const input = turns.upTo(question).map((id) => ({ type: "item_reference", id }));
  session.send("response.create", { response: { conversation: "none", mode, metadata: { question, mode }, input } });
}

// Ends the answer that is being made or heard.
function quiet() {
  if (live.answering) session.send("response.cancel");
  hush();
}

function begin() {
  position = 0;
  sent = [];
  session = live.session = new Session(handlers);
  session.update({
    mode: $("mode").value,
    token_events: true,
    audio: { input: { transcription: { model: "whisper-1" }, turn_detection: detection() } },
  });
}

// A new conversation, or one that was kept.
async function go(chosen = null) {
  const said = chosen ? await kept.turns(chosen.id) : [];
  if (session) hush();
  session?.close();
  live.answering = null;
  turns.clear();
  conversation = chosen ?? { id: Date.now(), title: "", model: about.model };
  begin();
  for (const turn of said) {
    const words = heardWords(turn);
    turn.aside ||= !words && !turn.recording; // there is nothing to tell the server
    turns.add(turn);
    if (!turn.aside) session.recall(turn, words);
  }
  await kept?.show(conversation.id);
  idle();
  if (!chosen) return;
  $("about").open = false;
  $("log").focus();
  $("said").textContent = `Conversation: ${chosen.title}`;
}

const detection = () => (live.hands ? { type: "server_vad", prefix_padding_ms: PREFIX } : null);

function take(buffer) {
  if (!live.hands && !live.held) return;
  session.send("input_audio_buffer.append", { audio: encode(buffer) });
  sent = [...sent.slice(-200), [position, performance.now()]];
  position += buffer.byteLength / 2;
}

async function ready() {
  await player.open();
  try {
    microphone ??= await openMicrophone(take, lost);
    return true;
  } catch (error) {
    show(error.message, true);
    return false;
  }
}

async function lost() {
  microphone = null;
  await listen(false);
  show("The microphone is gone. Connect it, or allow it again, and press Hands-free; or type.", true);
}

async function listen(on) {
  live.hands = on && await ready();
  $("talk").setAttribute("aria-pressed", live.hands);
  if (!live.hands && microphone && !live.held) { microphone.close(); microphone = null; }
  if (on && !live.hands) return;
  await session.update({ audio: { input: { turn_detection: detection() } } });
  idle();
}

async function press() {
  if (live.held) return;
  live.held = true;
  $("hold").setAttribute("aria-pressed", "true");
  if (live.hands) await listen(false);
  if (!await ready()) { release(); return; }
  if (!live.held) return;
  quiet();
  session.send("input_audio_buffer.clear");
  show("Recording; let go when you have asked.");
  live.recording = true;
}

function release() {
  live.held = false;
  $("hold").setAttribute("aria-pressed", "false");
  if (!live.recording) return;
  live.recording = false;
  live.asked = performance.now();
  session.send("input_audio_buffer.commit");
  session.send("response.create");
}

async function ask(text) {
  await player.open();
  quiet();
  live.asked = performance.now();
  await session.ask(text);
}

$("talk").onclick = () => listen(!live.hands);
$("hold").onpointerdown = press;
$("hold").oncontextmenu = (event) => event.preventDefault(); // of a long press
for (const kind of ["pointerup", "pointercancel", "pointerleave", "blur"]) $("hold").addEventListener(kind, release);
$("hold").onkeydown = ({ key, repeat }) => { if (!repeat && (key === " " || key === "Enter")) press(); };
$("hold").onkeyup = ({ key }) => { if (key === " " || key === "Enter") release(); };
$("stop").onclick = () => { quiet(); idle(); };
$("mode").onchange = () => session.update({ mode: $("mode").value });
$("anew").onclick = () => go();
document.addEventListener("keydown", ({ key }) => { if (key === "Escape") $("stop").click(); });
$("type").onsubmit = (event) => {
  event.preventDefault();
  if ($("typed").value.trim()) ask($("typed").value.trim());
  $("typed").value = "";
};

$("kept").open = matchMedia("(min-width: 60rem)").matches;
try {
  kept = await Kept.open($("kept").querySelector("ul"), go);
} catch {
  $("keeping").textContent = "This browser keeps none: a conversation ends with its page.";
}
const about = await (await fetch("about.json")).json();
$("model").textContent = about.model;
$("hint").textContent = about.hint;
$("limits").textContent = about.limits;
$("about").hidden = !about.limits && !about.examples.length;
for (const mode of about.modes) {
  $("mode").append(new Option(mode, mode, false, mode === about.mode));
  $("beside").append(new Option(mode, mode));
}
for (let level = 1; level <= about.blocks; level += 1) $("blocks").append(cell({ kinds: ["text"], levels: [level] }, 0));
for (const example of about.examples) {
  const entry = element("li");
  entry.append(button(example, () => ask(example)));
  $("examples").append(entry);
}
go();
