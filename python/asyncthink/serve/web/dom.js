/* Elements and figures. Text of a model enters the document as text nodes alone. */

const $ = (id) => document.getElementById(id);

/* An element: h("p.note", {title: "..."}, "text", child). */
function h(name, props = {}, ...children) {
  const [tag, ...classes] = name.split(".");
  const element = document.createElement(tag);
  element.className = classes.join(" ");
  for (const [key, value] of Object.entries(props))
    if (key.startsWith("--")) element.style.setProperty(key, value);
    else if (key in element) element[key] = value;
    else element.setAttribute(key, value);
  element.append(...children);
  return element;
}

const count = (n, noun) => `${n.toLocaleString("en")} ${noun}${n === 1 ? "" : "s"}`;
const inSeconds = (s) => (s >= 0.1 ? `${s.toFixed(s < 100 ? 2 : 0)} s` : `${Math.round(s * 1000)} ms`);

function inBytes(n) {
  for (const [unit, size] of [["GB", 1e9], ["MB", 1e6], ["KB", 1e3]]) if (n >= size) return `${(n / size).toFixed(1)} ${unit}`;
  return `${n} B`;
}

/* Text that grows. New text begins a node of its own now and then, so that the browser lays out what is new alone. */
class Growing {
  constructor(element) {
    this.element = element;
    this.node = null;
  }

  append(text) {
    if (!text) return;
    if (!this.node || this.node.length > 2000) this.element.append((this.node = document.createTextNode("")));
    this.node.appendData(text);
  }
}
