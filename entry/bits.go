package entry

// The bits of the head bytes. docs/formats/entry.md explains them; changing one is a new Version.
const (
	// A change.
	changeCreated  = 1 << 0
	changeSame     = 1 << 1 // tenant and domain of the change before
	changeOneInput = 1 << 2
	changeStages   = 1 << 3
	changeAlerts   = 1 << 4
	changeTimers   = 1 << 5
	changeCommands = 1 << 6 // from version 2 on, as the next
	changePublish  = 1 << 7

	// An input: bits 0 and 1 are its kind less one, 3 means that all is spelled out.
	inputOdd       = 3
	inputSame      = 1 << 2 // content format of the input before
	inputMessage   = 1 << 3
	inputSender    = 1 << 4
	inputFlagShift = 5 // three bits: the flags that this version knows
	inputFlagMask  = 7

	// A record: bits 0 and 1 are its kind less one.
	recordSameTime    = 1 << 2 // time of the record before it, or of the input's receipt
	recordNextSeries  = 1 << 3 // the series behind the one before
	recordNumberShift = 4      // three bits: a number's form, or a boolean's value
	recordOdd         = 1 << 7 // not of the usual shape: all is spelled out

	// The forms of a number: 0 to numberDigitsMax are digits after the point of a decimal.
	numberDigitsMax = 5
	numberFloat32   = 6
	numberFloat64   = 7

	// A stage's result.
	stageInOrder  = 1 << 0 // its number is its place
	stageStateSet = 1 << 1
	stageState    = 1 << 2
	stageRecords  = 1 << 3
	stageFailure  = 1 << 4
	stageRefused  = 1 << 5 // from version 2 on, as the next
	stageMade     = 1 << 6

	// An alert.
	alertSame      = 1 << 0 // tenant, device and domain of its change or state
	alertKey       = 1 << 1
	alertText      = 1 << 2
	alertValue     = 1 << 3
	alertClearedAt = 1 << 4
	alertKnownBits = 1<<5 - 1

	// A timer.
	timerDue       = 1 << 0
	timerWas       = 1 << 1
	timerKnownBits = 1<<2 - 1

	// A plugin's state in a device's state.
	pluginMade = 1 << 0
)

// knownBits are those of a change's and of a stage's head that a version may have.
func knownBits(version uint8) (change, stage uint8) {
	if version < versionEffects {
		return changeCommands - 1, stageRefused - 1
	}
	return 0xff, stageMade<<1 - 1
}

// pair is a row of the name table: a metric with its unit, or a name with "".
type pair struct{ name, unit string }

// names is the name table. The first rows lie in the table itself: a slice of them would move it to the heap.
type names struct {
	known int
	few   [24]pair
	many  []pair
}

func (n *names) add(p pair) {
	if n.known < len(n.few) {
		n.few[n.known] = p
	} else {
		n.many = append(n.many, p)
	}
	n.known++
}

// nth returns row i < known.
func (n *names) nth(i int) *pair {
	if i < len(n.few) {
		return &n.few[i]
	}
	return &n.many[i-len(n.few)]
}
