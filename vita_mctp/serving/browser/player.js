// Plays an answer's sound as it comes: each chunk begins at the sample where the one before ends.

export const RATE = 24000;
const LEAD = 0.04; // seconds between the first chunk and its sound, for the page to be ready in time

export class Player {
  constructor(ended) {
    this.ended = ended; // called when all that came has been played
    this.schedule = []; // of the answer that plays: {start, samples, late}, start in samples of the context
    this.sources = new Set();
    this.item = null;
  }

  // Browsers let a page make sound after a press only: call this from one.
  async open() {
    this.context ??= new AudioContext({ sampleRate: RATE, latencyHint: "interactive" });
    await this.context.resume();
  }

  get now() { return Math.round(this.context.currentTime * RATE); }
  get end() { const last = this.schedule.at(-1); return last ? last.start + last.samples : 0; }
  get playing() { return this.sources.size > 0; }
  get late() { return this.schedule.filter((chunk) => chunk.late).length; } // chunks that came after a silence

  // samples: Float32Array at RATE. Gives back in how many seconds they begin to be heard.
  push(item, samples) {
    if (item !== this.item) { this.stop(); this.item = item; this.schedule = []; }
    const soon = this.now + Math.round(LEAD * RATE);
    const first = this.schedule.length === 0;
    const late = !first && this.end < this.now;
    const start = first || late ? soon : this.end;
    const buffer = this.context.createBuffer(1, samples.length, RATE);
    buffer.copyToChannel(samples, 0);
    const source = new AudioBufferSourceNode(this.context, { buffer });
    source.connect(this.context.destination);
    source.onended = () => { if (this.sources.delete(source) && !this.playing) this.ended(); };
    this.sources.add(source);
    source.start(start / RATE);
    this.schedule.push({ start, samples: samples.length, late });
    return (start - this.now) / RATE + (this.context.outputLatency || 0);
  }

  // Samples of the answer that have left the loudspeaker.
  played() {
    if (!this.context) return 0;
    const heard = this.now - Math.round((this.context.outputLatency || 0) * RATE);
    return this.schedule.reduce((sum, { start, samples }) => sum + Math.min(samples, Math.max(0, heard - start)), 0);
  }

  // Empties the player. Gives back the item that was playing and how much of it was heard, null where nothing was.
  stop() {
    const cut = this.playing ? { item: this.item, played: this.played() } : null;
    for (const source of this.sources) { source.onended = null; source.stop(); }
    this.sources.clear();
    this.item = null;
    return cut;
  }
}
