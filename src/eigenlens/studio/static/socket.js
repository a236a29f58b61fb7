// Frames: the newest request wins, one is in flight, and a lost server is found again.

export class Frames extends EventTarget {
  #socket = null;
  #busy = false;
  #wanted = null;   // what is asked for next; an older wish is forgotten
  #flying = null;
  #number = 0;
  #waits = 250;

  constructor() {
    super();
    this.#open();
  }

  /** Ask for a picture: {edit, n, largest, final}; what else the request holds comes back with the frame. */
  ask(request) {
    this.#wanted = request;
    this.#send();
  }

  #open() {
    const socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/frames`);
    socket.binaryType = "arraybuffer";
    socket.onopen = () => {
      this.#waits = 250;
      this.#busy = false;
      this.#wanted ??= this.#flying;
      this.dispatchEvent(new CustomEvent("open"));
      this.#send();
    };
    socket.onmessage = (event) => this.#receive(event.data);
    socket.onclose = () => {
      this.#wanted ??= this.#flying;
      this.#busy = true;
      this.dispatchEvent(new CustomEvent("lost"));
      setTimeout(() => this.#open(), this.#waits);
      this.#waits = Math.min(this.#waits * 1.6, 4000);
    };
    this.#socket = socket;
  }

  #send() {
    if (this.#busy || !this.#wanted || this.#socket.readyState !== WebSocket.OPEN) return;
    this.#flying = this.#wanted;
    this.#wanted = null;
    this.#busy = true;
    const { edit, n, largest, final } = this.#flying;
    this.#socket.send(JSON.stringify({ id: ++this.#number, edit, n, largest, final }));
  }

  #receive(data) {
    const request = this.#flying;
    this.#flying = null;
    this.#busy = false;
    this.#send();  // the next is on its way before this one is decoded
    if (typeof data === "string") {
      this.dispatchEvent(new CustomEvent("failed", { detail: { ...JSON.parse(data), request } }));
      return;
    }
    const length = new DataView(data).getUint32(0, true);
    const about = JSON.parse(new TextDecoder().decode(new Uint8Array(data, 4, length)));
    const picture = new Blob([new Uint8Array(data, 4 + length)], { type: `image/${about.format}` });
    this.dispatchEvent(new CustomEvent("frame", { detail: { about, picture, request } }));
  }
}
