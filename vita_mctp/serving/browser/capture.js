// The microphone's samples at 24 kHz, 16 bits, in chunks of 32 ms. Each is the mean of the input over its time.

const RATE = 24000;
const CHUNK = 768;

class Capture extends AudioWorkletProcessor {
  constructor() {
    super();
    this.step = sampleRate / RATE; // input samples for one of ours
    this.need = this.step;
    this.sum = 0;
    this.chunk = new Int16Array(CHUNK);
    this.filled = 0;
  }

  process([[input]]) {
    for (const sample of input ?? []) {
      let left = 1; // of this input sample
      while (left >= this.need) {
        this.emit((this.sum + sample * this.need) / this.step);
        left -= this.need;
        this.sum = 0;
        this.need = this.step;
      }
      this.sum += sample * left;
      this.need -= left;
    }
    return true;
  }

  emit(sample) {
    this.chunk[this.filled++] = Math.max(-32768, Math.min(32767, Math.round(sample * 32767)));
    if (this.filled < CHUNK) return;
    this.port.postMessage(this.chunk.buffer, [this.chunk.buffer]);
    this.chunk = new Int16Array(CHUNK);
    this.filled = 0;
  }
}

registerProcessor("capture", Capture);
