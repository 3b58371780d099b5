// The conversation page: buttons, the microphone, the session and the player, wired together.

import { openMicrophone } from "./microphone.js";
import { Player, RATE } from "./player.js";
import { Session, decode, encode } from "./session.js";
import { Turns, element } from "./turns.js";

const PREFIX = 300; // ms that the server puts before speech
const $ = (id) => document.getElementById(id);
const player = new Player(() => { if (!live.answering) idle(); });
const turns = new Turns($("turns"), replay, again);
// What happens now, and what happened; tests and a browser's console read it.
const live = { answering: null, hands: false, held: false, interruptions: [], first: new Map(), asked: 0, player, turns,
  sent: () => position };
globalThis.live = live;
const aside = new Set(); // answers that are no part of the conversation: the same question in another mode
const silenced = new Set(); // answers of which no more is to be heard
let microphone = null;
let session = null;
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

const handlers = {
  closed: (reason) => { hush(); listen(false); show(`The connection ended${reason ? `: ${reason}` : ""}. Press New conversation.`, true); },
  error: ({ error }) => { if (error.code !== "response_cancel_not_active") show(error.message, true); },
  "input_audio_buffer.speech_started": ({ audio_start_ms }) => {
    interrupt((audio_start_ms + PREFIX) * RATE / 1000);
    show("You speak.");
  },
  "input_audio_buffer.speech_stopped": () => { live.asked = performance.now(); },
  "conversation.item.added": ({ item }) => {
    $("about").open = false;
    if (item.role !== "user") return;
    turns.add(item.id, "user");
    if (item.content[0]?.text) turns.write(item.id, item.content[0].text, true);
  },
  "conversation.item.input_audio_transcription.delta": ({ item_id, delta }) => turns.write(item_id, delta),
  "conversation.item.input_audio_transcription.completed": ({ item_id, transcript }) => {
    turns.write(item_id, transcript, true);
    $("said").textContent = `You said: ${transcript}`;
  },
  "response.created": ({ response }) => {
    live.answering = response.id;
    live.question = response.metadata?.question;
    $("stop").disabled = false;
    show(live.hands ? "Answering; speak to interrupt." : "Answering.");
  },
  "response.output_item.added": ({ item }) => {
    live.item = item.id;
    if (live.question) aside.add(item.id);
    turns.add(item.id, "assistant", live.question);
  },
  "response.output_audio_transcript.delta": ({ item_id, delta }) => turns.write(item_id, delta),
  "response.output_audio.delta": ({ item_id, delta }) => {
    if (silenced.has(item_id)) return; // it was on its way
    const samples = decode(delta);
    const wait = player.push(item_id, samples);
    turns.get(item_id)?.sound.push(samples);
    if (!live.first.has(item_id)) live.first.set(item_id, (performance.now() - live.asked) / 1000 + wait);
  },
  "response.done": ({ response }) => {
    live.answering = null;
    const item = response.output[0];
    const text = item?.content[0]?.transcript ?? "";
    if (item) turns.finish(item.id, response.metrics, live.first.get(item.id), response.status === "cancelled");
    if (text) $("said").textContent = `Answer: ${text}`;
    if (response.status === "failed") show(response.status_details.error.message, true);
    else if (!player.playing) idle();
  },
};

// The user spoke, from this sample on: what plays is over, and the server hears how much was heard.
function interrupt(from) {
  const chunk = sent.findLast(([start]) => start <= from);
  const cut = hush();
  if (cut) live.interruptions.push({ ...cut, after: chunk ? performance.now() - chunk[1] : null });
}

// Empties the player, and lets nothing more in of the answer that is being made.
function hush() {
  const cut = player.stop();
  const item = cut?.item ?? (live.answering && live.item);
  if (live.answering) silenced.add(live.item);
  if (turns.get(item) && !aside.has(item)) session.truncate(item, cut?.played ?? 0, RATE);
  return cut;
}

async function replay(sound) {
  hush();
  await player.open();
  for (const samples of sound) player.push("replay", samples);
}

async function again(question) {
  await player.open();
  quiet();
  live.asked = performance.now();
  const input = [{ type: "item_reference", id: question }];
  session.send("response.create", { response: { conversation: "none", metadata: { question }, input } });
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
    audio: { input: { transcription: { model: "whisper-1" }, turn_detection: detection() } },
  });
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
    microphone ??= await openMicrophone(take);
    return true;
  } catch (error) {
    show(error.message, true);
    return false;
  }
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
$("anew").onclick = () => { hush(); session.close(); live.answering = null; turns.clear(); begin(); idle(); };
$("type").onsubmit = (event) => {
  event.preventDefault();
  if ($("typed").value.trim()) ask($("typed").value.trim());
  $("typed").value = "";
};

const about = await (await fetch("about.json")).json();
$("model").textContent = about.model;
$("hint").textContent = about.hint;
$("limits").textContent = about.limits;
$("about").hidden = !about.limits && !about.examples.length;
for (const mode of about.modes) $("mode").append(new Option(mode, mode, false, mode === about.mode));
for (const example of about.examples) {
  const entry = element("li");
  const button = element("button", example);
  button.onclick = () => ask(example);
  entry.append(button);
  $("examples").append(entry);
}
begin();
