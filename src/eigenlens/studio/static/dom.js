// Making elements, and small things about them.

/** Make an element: h("button", {class: "icon", onclick: f}, "text", child). */
export function h(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") element.style.cssText = value;
    else if (name in element && typeof value !== "string") element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export const byId = (id) => document.getElementById(id);

/** Tell the person something: quietly in the header, or as a notice where it is an error. */
export function tell(text) {
  byId("status").textContent = text;
}

let notices = 0;
export function complain(error) {
  const text = error?.message ?? String(error);
  const same = [...byId("notices").children].find((each) => each.dataset.text === text);
  if (same) return;
  const notice = h("div", { class: "notice", "data-text": text }, h("span", {}, text),
    h("button", { class: "icon", "aria-label": "Close", onclick: () => notice.remove() }, "×"));
  byId("notices").append(notice);
  if (++notices > 3 && byId("notices").children.length > 3) byId("notices").firstChild.remove();
  setTimeout(() => notice.remove(), 12000);
}

/** Call f once calls have paused for so many milliseconds. */
export function debounced(f, wait) {
  let timer;
  return (...args) => {
    clearTimeout(timer);
    timer = setTimeout(() => f(...args), wait);
  };
}

/** A button that is greyed with its reason where there is one. */
export function button(text, onclick, { reason = "", ...props } = {}) {
  const made = h("button", { ...props, onclick: (event) => made.getAttribute("aria-disabled") !== "true" && onclick(event) }, text);
  grey(made, reason);
  return made;
}

/** Grey a control and say why, in a way that a keyboard and a screen reader reach; "" makes it work again. */
export function grey(element, reason) {
  if (reason) {
    element.setAttribute("aria-disabled", "true");
    element.title = reason;
  } else {
    if (element.getAttribute("aria-disabled")) element.title = "";
    element.removeAttribute("aria-disabled");
  }
}

export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = h("textarea", { style: "position:fixed;opacity:0" });
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  tell("copied");
}

/** Hand a Blob to the person as a file. */
export function download(blob, name) {
  const link = h("a", { href: URL.createObjectURL(blob), download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

export const shown = (value, digits = 3) => (value === null || value === undefined ? "–" : Number(value).toPrecision(digits).replace(/\.?0+$/, ""));
