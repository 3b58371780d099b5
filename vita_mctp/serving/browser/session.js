// One conversation of the Realtime protocol: a WebSocket, and the bytes of sound on it.

export function encode(buffer) {
  return btoa(String.fromCharCode(...new Uint8Array(buffer)));
}

export function decode(text) {
  const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  return Float32Array.from(new Int16Array(bytes.buffer), (sample) => sample / 32768);
}

export class Session {
  // handlers: by an event's type, with when it came, and `closed`.
  constructor(handlers) {
    const address = new URL("v1/realtime", document.baseURI);
    address.protocol = address.protocol.replace("http", "ws");
    this.socket = new WebSocket(address);
    this.opened = new Promise((resolve) => { this.socket.onopen = this.socket.onerror = resolve; });
    this.socket.onmessage = ({ data, timeStamp }) => {
      const event = JSON.parse(data);
      handlers[event.type]?.(event, timeStamp);
    };
    this.socket.onclose = ({ reason }) => handlers.closed(reason);
  }

  async send(type, body = {}) {
    await this.opened;
    if (this.socket.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify({ type, ...body }));
  }

  update(changes) {
    return this.send("session.update", { session: { type: "realtime", ...changes } });
  }

  async ask(text) {
    await this.send("conversation.item.create", { item: { role: "user", content: [{ type: "input_text", text }] } });
    await this.send("response.create");
  }

  // Tells this session what an earlier one said, under the same id. recording: 16-bit samples in base64.
  recall({ id, role, recording }, words) {
    const text = { type: role === "user" ? "input_text" : "output_text", text: words };
    const content = recording ? { type: "input_audio", audio: recording, transcript: words } : text;
    return this.send("conversation.item.create", { item: { id, role, content: [content] } });
  }

  truncate(item, samples, rate) {
    const end = Math.floor(samples * 1000 / rate);
    return this.send("conversation.item.truncate", { item_id: item, content_index: 0, audio_end_ms: end });
  }

  close() {
    this.socket.onclose = this.socket.onmessage = null;
    this.socket.close();
  }
}
