// Shows the numbers of the point next to the pointer.
for (const chart of document.querySelectorAll(".chart")) {
  const area = chart.querySelector("svg.area"), tip = chart.appendChild(document.createElement("div"));
  tip.className = "tip"; tip.hidden = true;
  const [left, right, low, high] = (chart.dataset.range || "0 1 0 1").split(" ").map(Number);
  const form = chart.dataset.form || "";
  const numbers = text => text ? text.split(" ").map(Number) : [];
  const lines = [...chart.querySelectorAll("[data-y]")].map(line => ({ name: line.dataset.name, x: numbers(line.dataset.x), y: numbers(line.dataset.y) }));
  const said = y => form.endsWith("%") ? Number((y * 100).toPrecision(3)) + "%" : form.endsWith("e") ? y.toExponential(2) : String(Number(y.toPrecision(4)));
  const nearest = (at, box) => {
    let best = null, least = 40 * 40;
    for (const line of lines) line.x.forEach((x, place) => {
      const dx = (x - left) / (right - left) * box.width - at[0], dy = (high - line.y[place]) / (high - low) * box.height - at[1];
      // What is above or below the pointer is more likely meant than what is beside it.
      const far = dx * dx + dy * dy / 4;
      if (far < least) { least = far; best = [line.name, x, line.y[place], at[0] + dx, at[1] + dy]; }
    });
    return best;
  };
  const show = (text, x, y, box) => {
    tip.hidden = false; tip.textContent = text;
    const edge = box.left - chart.getBoundingClientRect().left;
    tip.style.left = Math.max(0, Math.min(edge + x - tip.offsetWidth / 2, chart.clientWidth - tip.offsetWidth)) + "px";
    tip.style.top = y + area.offsetTop - tip.offsetHeight - 10 + "px";
  };
  const look = event => {
    const box = area.getBoundingClientRect(), at = [event.clientX - box.left, event.clientY - box.top];
    if (event.target.dataset.tip) return show(event.target.dataset.tip, at[0], at[1], box);
    const found = nearest(at, box);
    if (found) show(found[0] + ": " + said(found[2]) + " · " + chart.dataset.across + " " + Number(found[1].toPrecision(4)), found[3], found[4], box); else tip.hidden = true;
  };
  chart.addEventListener("pointermove", look);
  chart.addEventListener("pointerdown", look);
  chart.addEventListener("pointerleave", () => { tip.hidden = true; });
}
