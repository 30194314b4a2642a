// Small live charts over the time of a session, drawn as SVG without any library.

const NAMESPACE = "http://www.w3.org/2000/svg";
const HEIGHT = 132;
const MARGIN = { left: 44, right: 8, top: 8, bottom: 18 };
const SHORTEST_AXIS_S = 20;

export class Chart {
  // ``lines``: [{name, colour, dashed, area, steps}], in the order of the data given to draw.
  constructor(parent, title, unit, lines) {
    this.lines = lines;
    const figure = document.createElement("figure");
    const caption = figure.appendChild(document.createElement("figcaption"));
    caption.appendChild(document.createElement("b")).textContent = `${title}, ${unit}`;
    for (const line of lines.filter(({ name }) => name)) {
      const key = caption.appendChild(document.createElement("i"));
      key.textContent = line.name;
      key.style.setProperty("--c", `var(--${line.colour})`);
      key.classList.toggle("dashed", Boolean(line.dashed));
    }
    this.svg = figure.appendChild(element("svg", { role: "img", "aria-label": title }));
    parent.appendChild(figure);
  }

  // ``series``: per line a list of [seconds, value]; ``stalls``: [from, to]; ``marks``: [at, value].
  draw(series, { endS, stalls = [], marks = [], ceiling = 0 }) {
    const width = this.svg.clientWidth || 560;
    const lastS = Math.max(endS, SHORTEST_AXIS_S);
    const values = series.flat().map(([, value]) => value);
    const step = niceStep(Math.max(...values, ceiling, 1e-9) / 3);
    const top = Math.max(Math.ceil(Math.max(...values, ceiling) / step) * step, step);
    const x = (s) => MARGIN.left + (Math.min(s, lastS) / lastS) * (width - MARGIN.left - MARGIN.right);
    const y = (v) => HEIGHT - MARGIN.bottom - (v / top) * (HEIGHT - MARGIN.top - MARGIN.bottom);
    const parts = [];
    for (let value = 0; value <= top * 1.001; value += step) {
      parts.push(element("line", { class: "grid", x1: x(0), x2: x(lastS), y1: y(value), y2: y(value) }));
      parts.push(label(x(0) - 6, y(value) + 4, "end", String(Number(value.toPrecision(6)))));
    }
    const every = niceStep(lastS / 5);
    for (let second = 0; second <= lastS; second += every) {
      const anchor = second === 0 ? "start" : second > lastS * 0.97 ? "end" : "middle";
      parts.push(label(x(second), HEIGHT - 3, anchor, `${second} s`));
    }
    for (const [from, to] of stalls) {
      const wide = Math.max(x(to) - x(from), 1);
      parts.push(element("rect", { class: "stall", x: x(from), y: MARGIN.top, width: wide, height: y(0) - MARGIN.top }));
    }
    series.forEach((points, number) => this.plot(parts, points, this.lines[number], x, y));
    for (const [at, value] of marks) {
      parts.push(element("circle", { class: "fallback", cx: x(at), cy: y(value), r: 4 }));
    }
    this.svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    this.svg.replaceChildren(...parts);
  }

  plot(parts, points, { colour, dashed, area, steps }, x, y) {
    if (points.length === 0) return;
    let path = "";
    points.forEach(([at, value], number) => {
      if (steps && number > 0) path += `H${x(at).toFixed(1)}`;
      path += `${path ? "L" : "M"}${x(at).toFixed(1)},${y(value).toFixed(1)}`;
    });
    const style = `--c: var(--${colour})`;
    if (area) {
      const d = `${path}L${x(points.at(-1)[0])},${y(0)}L${x(points[0][0])},${y(0)}Z`;
      parts.push(element("path", { class: "area", d, style }));
    }
    parts.push(element("path", { class: dashed ? "line dashed" : "line", d: path, style }));
  }
}

function element(name, attributes) {
  const made = document.createElementNS(NAMESPACE, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

function label(x, y, anchor, text) {
  const made = element("text", { x, y, "text-anchor": anchor });
  made.textContent = text;
  return made;
}

// 1, 2 or 5 times a power of ten, about as large as ``wanted``.
function niceStep(wanted) {
  const power = 10 ** Math.floor(Math.log10(wanted));
  return power * [1, 2, 5, 10].find((factor) => factor * power >= wanted * 0.999);
}
