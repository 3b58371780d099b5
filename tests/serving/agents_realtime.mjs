// A conversation of OpenAI's Agents SDK, as it comes: node agents_realtime.mjs URL FILE, of 16-bit samples at 24 kHz.
// Two spoken turns, the second of which interrupts its own answer. Says at the end, as JSON, what it saw.
import { createRequire } from 'node:module';
import { readFileSync } from 'node:fs';

// The package lies where NODE_PATH says, which `import` does not look at.
const { RealtimeAgent, RealtimeSession, OpenAIRealtimeWebSocket } =
  createRequire(import.meta.url)('@openai/agents-realtime');

const [url, file] = process.argv.slice(2);
const question = readFileSync(file);
const silence = Buffer.alloc(2 * 24000);
const seen = { events: [], audio: 0, interrupted: 0, truncated: 0, errors: [], statuses: [] };

const transport = new OpenAIRealtimeWebSocket({ url });
const session = new RealtimeSession(new RealtimeAgent({ name: 'nano', instructions: 'Answer.' }), { transport });
const waiting = [];
const until = (name, count) => new Promise((resolve) => waiting.push({ name, count, resolve }));
const note = (name) => {
  seen.events.push(name);
  const all = seen.events.filter((each) => each === name).length;
  waiting.filter((each) => each.name === name && all >= each.count).forEach((each) => each.resolve());
};

transport.on('*', (event) => {
  if (event.type === 'response.done') seen.statuses.push(event.response.status);
  if (event.type === 'conversation.item.truncated') seen.truncated += 1;
  note(event.type);
});
session.on('audio', (event) => { seen.audio += event.data.byteLength; note('audio'); });
session.on('audio_interrupted', () => { seen.interrupted += 1; note('audio_interrupted'); });
session.on('error', (event) => seen.errors.push(JSON.stringify(event.error)));

const say = (...pieces) => {
  const all = Buffer.concat(pieces);
  for (let begin = 0; begin < all.length; begin += 960) {
    const piece = all.subarray(begin, begin + 960);
    session.sendAudio(piece.buffer.slice(piece.byteOffset, piece.byteOffset + piece.length));
  }
};

await session.connect({ apiKey: 'any', url });
say(silence, question, silence);
await until('response.done', 1);
const first = seen.audio;
say(silence, question, silence);
await until('audio', seen.events.filter((each) => each === 'audio').length + 1);
say(question, silence);
await until('audio_interrupted', 1);
await until('response.done', 3);
const texts = session.history.map((item) => [item.role, item.content?.[0]?.transcript ?? '']);
console.log(JSON.stringify({ ...seen, first, texts }));
session.close();
process.exit(0);
