"use strict";
(() => {
  const panels = JSON.parse(document.getElementById("panels").textContent);
  const plots = [...document.querySelectorAll(".plot")];
  const dark = matchMedia("(prefers-color-scheme: dark)");
  // On a touch screen, scrolling the page must not zoom a figure.
  const dragmode = matchMedia("(pointer: coarse)").matches ? false : "zoom";
  const config = {
    responsive: true,
    displaylogo: false,
    // plotly's button for it uploads the figure.
    showSendToCloud: false,
    plotlyServerURL: "",
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
    toImageButtonOptions: { format: "svg" },
  };

  // "@c0/0.2" is the page's colour --c0 with opacity 0.2.
  function colored(value, style) {
    if (Array.isArray(value)) return value.map((item) => colored(item, style));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, colored(item, style)]));
    }
    const found = typeof value === "string" && /^@([a-z]+\d*)(?:\/([\d.]+))?$/.exec(value);
    if (!found) return value;
    const hex = style.getPropertyValue(`--${found[1]}`).trim();
    if (!hex) return value;
    const [r, g, b] = [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
    return `rgba(${r},${g},${b},${found[2] || 1})`;
  }

  function layoutOf(own, narrow) {
    const axis = { gridcolor: "@grid", linecolor: "@rule", zerolinecolor: "@grid", automargin: true, tickfont: { size: 11 } };
    const plain = {
      paper_bgcolor: "@paper",
      plot_bgcolor: "@paper",
      font: { family: "system-ui, -apple-system, Segoe UI, Roboto, sans-serif", size: 12, color: "@ink" },
      margin: { l: !own.yaxis.title.text ? 16 : narrow ? 48 : 58, r: 12, t: 26, b: own.xaxis.title.text ? 48 : 24 },
      legend: { orientation: "h", x: 0, xanchor: "left", y: -0.2, yanchor: "top", font: { size: 11 } },
      hoverlabel: { bgcolor: "@raised", bordercolor: "@rule", font: { color: "@ink" } },
      hovermode: "closest",
      dragmode,
    };
    return {
      ...plain,
      ...own,
      xaxis: { ...axis, ...own.xaxis, title: { ...own.xaxis.title, standoff: 8 } },
      yaxis: { ...axis, ...own.yaxis, title: { ...own.yaxis.title, standoff: 6 } },
    };
  }

  // A figure keeps the size that it has on the screen; with a view box, the style of the printed page can scale it.
  function scalable(plot) {
    const layers = plot.querySelectorAll(".main-svg");
    const [width, height] = ["width", "height"].map((side) => Number(layers[0].getAttribute(side)));
    plot.style.setProperty("--aspect", width / height);
    plot.style.setProperty("--width", `${width}px`);
    for (const layer of layers) layer.setAttribute("viewBox", `0 0 ${width} ${height}`);
  }

  async function draw() {
    const style = getComputedStyle(document.documentElement);
    let drawn = 0;
    for (const [index, plot] of plots.entries()) {
      const { data, layout } = panels[index];
      try {
        await Plotly.react(plot, colored(data, style), colored(layoutOf(layout, innerWidth < 600), style), config);
        plot.removeAllListeners("plotly_afterplot");
        plot.on("plotly_afterplot", () => scalable(plot));
        scalable(plot);
        drawn += 1;
      } catch (error) {
        console.error(`figure ${index}: ${error}`);
        plot.textContent = "This figure could not be drawn; its numbers are in the table.";
      }
    }
    document.body.dataset.drawn = drawn;
  }

  function print(on) {
    document.documentElement.classList.toggle("printing", on);
    if (dark.matches) draw();
  }

  async function reloadWhenNewer(seconds) {
    let known = null;
    for (;;) {
      try {
        const answer = await fetch(location.href, { method: "HEAD", cache: "no-store" });
        const now = answer.headers.get("ETag");
        if (known !== null && now !== known) location.reload();
        known = now;
      } catch {
        // The server has stopped: the page stays as it is.
        return;
      }
      await new Promise((done) => setTimeout(done, 1000 * seconds));
    }
  }

  draw();
  dark.addEventListener("change", draw);
  addEventListener("beforeprint", () => print(true));
  addEventListener("afterprint", () => print(false));
  if (document.body.dataset.live) reloadWhenNewer(Number(document.body.dataset.live));
})();
