import DiffusionCore
import Foundation

/// What is known after one evaluation of the network.
public struct Step: Sendable {
  /// Steps done before this one.
  public let index: Int
  /// Steps in all.
  public let total: Int
  /// Clean estimates of the sides that were asked for, highest first.
  public let previews: [Picture]
  /// The result; only with the last step, which is never dropped.
  public let finished: Finished?
  /// Seconds that this step took.
  public let seconds: Double
  /// How hot the device is.
  public let thermalState: ThermalState
}

/// The result of a run.
public struct Finished: Sendable {
  /// One picture per level that ran, highest first.
  public let pictures: [Picture]
  /// The same before rounding to 8 bits: (1, 3, side, side), in [-1, 1].
  public let values: [Tensor]

  /// The picture of the highest level.
  public var picture: Picture { pictures[0] }
}

/// Which clean estimates become pictures at every step; each costs its bytes and little time.
public enum Previews: Sendable, Equatable {
  /// None.
  case none
  /// These sides, as far as they run.
  case sides(Set<Int>)
  /// Every level.
  case all

  func include(_ side: Int) -> Bool {
    switch self {
    case .none: false
    case .sides(let sides): sides.contains(side)
    case .all: true
    }
  }
}

/// `ProcessInfo.ThermalState`, and unknown where there is none.
public enum ThermalState: String, Sendable {
  /// As the system names them; unknown on Linux.
  case nominal, fair, serious, critical, unknown

  /// Of the device, now.
  public static var current: ThermalState {
    #if canImport(Darwin)
      switch ProcessInfo.processInfo.thermalState {
      case .nominal: .nominal
      case .fair: .fair
      case .serious: .serious
      case .critical: .critical
      @unknown default: .unknown
      }
    #else
      .unknown
    #endif
  }
}
