// Conversations, kept in this browser alone: their names in one store, every turn with its sound in another.

import { button, element } from "./turns.js";

const result = (request) => new Promise((resolve, reject) => {
  request.onsuccess = () => resolve(request.result);
  request.onerror = () => reject(request.error);
});

export class Kept {
  // list: shows them. go: opens one. Rejects where the browser keeps nothing.
  static async open(list, go) {
    const opening = indexedDB.open("vita-mctp", 1);
    opening.onupgradeneeded = () => {
      opening.result.createObjectStore("conversations", { keyPath: "id" });
      opening.result.createObjectStore("turns", { keyPath: ["conversation", "id"] });
    };
    return Object.assign(new Kept(), { database: await result(opening), list, go });
  }

  store(name, mode = "readonly") { return this.database.transaction(name, mode).objectStore(name); }

  async turns(id) {
    const turns = await result(this.store("turns").getAll(every(id)));
    return turns.sort((a, b) => a.number - b.number);
  }

  async keep(conversation, turn) {
    await result(this.store("turns", "readwrite").put({ ...turn, conversation: conversation.id }));
    await result(this.store("conversations", "readwrite").put(conversation));
  }

  async remove(id) {
    await result(this.store("turns", "readwrite").delete(every(id)));
    await result(this.store("conversations", "readwrite").delete(id));
  }

  // current: the id of the one that is open.
  async show(current) {
    const all = await result(this.store("conversations").getAll());
    this.list.replaceChildren(...all.reverse().map((conversation) => {
      const { id, title, model } = conversation;
      const when = new Date(id).toLocaleString([], { dateStyle: "short", timeStyle: "short" });
      const open = button(title || "…", () => this.go(conversation), id === current ? { "aria-current": "true" } : {});
      open.append(element("small", `${model}, ${when}`));
      const entry = element("li");
      entry.append(open, button("×", async () => {
        await this.remove(id);
        await (id === current ? this.go() : this.show(current));
        this.list.closest("details").querySelector("summary").focus();
      }, { "aria-label": `Remove: ${title}` }));
      return entry;
    }));
  }
}

// The keys of a conversation's turns.
const every = (id) => IDBKeyRange.bound([id], [id, []]);
