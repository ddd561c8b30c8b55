package sim

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
)

// The demo promises a visible alert within 20 s: the mean of the last five temperatures of the fridge whose door stays
// open is above 8 °C by then, and everybody else's is not.
func TestOneFridgeGetsTooWarmWithin20Seconds(t *testing.T) {
	cfg := &Config{Devices: 25, Every: time.Second, MQTT: "x", CoAP: "y", Prefix: "fridge"}
	for n := range cfg.Devices {
		f := newFridge(cfg, n, &Stats{})
		var last []float64
		warm := time.Duration(0)
		for s := 1; s <= 20; s++ {
			f.step(time.Second)
			last = append(last, f.temp)
			if len(last) > 5 {
				last = last[1:]
			}
			sum := 0.0
			for _, v := range last {
				sum += v
			}
			if sum/float64(len(last)) > 8 && warm == 0 {
				warm = f.age
			}
		}
		if (warm > 0) != (n == 6) {
			t.Errorf("%s: too warm at %v", f.id, warm)
		}
	}
}

func TestPayloadIsSenML(t *testing.T) {
	f := newFridge(&Config{Devices: 1, Every: time.Second, MQTT: "x", Prefix: "fridge"}, 0, &Stats{})
	var pack []map[string]any
	if err := json.Unmarshal(f.payload(time.Unix(1_790_000_000, 0)), &pack); err != nil {
		t.Fatal(err)
	}
	if len(pack) != 4 || pack[0]["bn"] != "fridge-01:" || pack[0]["bt"] != 1.79e9 || pack[3]["vb"] != false {
		t.Errorf("got %v", pack)
	}
}

func TestReadCSV(t *testing.T) {
	pts, err := ReadCSV(strings.NewReader("timestamp,value\n2013-07-04 00:00:00,69.88083514\n2013-07-04T01:00:00Z,71.2\n"))
	if err != nil || len(pts) != 2 || pts[0].Value != 69.88083514 || pts[1].At.Sub(pts[0].At) != time.Hour {
		t.Errorf("got %v, %v", pts, err)
	}
	for in, want := range map[string]string{"": "header", "a,b\nx,1\n": "line 2", "a,b\n2013-07-04 00:00:00,NaN\n": "finite", "a,b\n1\n": "wrong number of fields"} {
		if _, err := ReadCSV(strings.NewReader(in)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %s", in, err, want)
		}
	}
}

func TestPackIsRelativeToItsFirstPoint(t *testing.T) {
	at := time.Date(2013, 12, 2, 21, 15, 0, 0, time.UTC)
	got := string(Replay{Device: "m1", Metric: "temp", Unit: "Cel"}.pack([]Point{{at, 73.96732207}, {at.Add(5 * time.Minute), 74.93588199999998}}))
	want := `[{"bn":"m1:","n":"temp","bu":"Cel","bt":1386018900.000000,"v":73.96732207},{"n":"temp","t":300,"v":74.93588199999998}]`
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}
